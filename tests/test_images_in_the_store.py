"""What a supervisor finds in the server's store, which it does not trust: only the image that was asked for is started."""

import os
import sys

import msgspec
import pytest

from adyton.crypto.keys import debug_key
from adyton.errors import ImageError, PlatformError, SignatureError
from adyton.image.build import make_image
from adyton.image.manifest import Manifest
from adyton.image.sign import add_signature
from adyton.provision.store import BlobStore
from adyton.runtime.launch import LaunchRequest, Zygote

pytestmark = pytest.mark.sandbox
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
ELSEWHERE = ">=3.12" if HERE == "3.11" else "<3.12"
MANIFEST = Manifest(name="one", entry="one:", entries=[])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(tmp_path_factory.mktemp("zygote") / "store")


@pytest.fixture(scope="module")
def zygote(directory):
    with Zygote.start(directory) as zygote:
        yield zygote


@pytest.fixture
def store(zygote, directory):
    """The store of that zygote, emptied at the end."""
    yield BlobStore(directory)
    for name in os.listdir(f"{directory}/blobs/sha256"):
        os.unlink(f"{directory}/blobs/sha256/{name}")


def put(store, manifest=MANIFEST, *, signed=True):
    image = make_image(manifest, {"one.py": b"ONE = 1\n"})
    if signed:
        image = add_signature(image, debug_key())
    store.add(image.oci_manifest)
    for blob in image.blobs.values():
        store.add(blob.read())
    return LaunchRequest(image.measurement, [store.add(each.envelope) for each in image.signatures])


def refused(zygote, request, kind, text):
    with pytest.raises(kind, match=text), zygote.launch(request):
        pass


def test_the_image_that_is_there_starts(zygote, store):
    with zygote.launch(put(store)) as enclave:
        assert not enclave.ended()


def test_a_blob_that_is_missing(zygote, store):
    request = put(store)
    os.unlink(store.path(request.measurement))
    refused(zygote, request, ImageError, f"blob {request.measurement} is not in the server's store")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b" ", lambda data: data.swapcase()])
def test_a_blob_that_was_changed(zygote, store, damage):
    request = put(store)
    for path in map(store.path, (request.measurement, *request.signatures)):
        with open(path, "rb") as file:
            data = file.read()
        os.unlink(path)
        with open(path, "wb") as file:
            file.write(damage(data))
        refused(zygote, request, ImageError, "is damaged")
        with open(path, "wb") as file:
            file.write(data)


def test_a_file_that_would_take_all_memory(zygote, store):
    request = put(store)
    path = store.path(request.measurement)
    os.unlink(path)
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a hole
    refused(zygote, request, ImageError, "is damaged")


@pytest.mark.parametrize("digest", ["", "sha256:../../etc/passwd", "sha512:" + "0" * 128, "sha256:" + "A" * 64])
def test_a_name_that_is_no_digest(zygote, store, digest):
    refused(zygote, msgspec.structs.replace(put(store), measurement=digest), ImageError, "is not a digest")


def test_an_image_without_a_signature(zygote, store):
    refused(zygote, put(store, signed=False), SignatureError, "sign")


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("python", ELSEWHERE, f"runs on Python {ELSEWHERE}; this server has {HERE}"),
        ("runtime", "wasm", "wants runtime wasm with ABI adyton-1; this server has process"),
    ],
)
def test_an_image_for_another_server(zygote, store, field, value, text):
    refused(zygote, put(store, msgspec.structs.replace(MANIFEST, **{field: value})), PlatformError, text)


def test_a_platform_that_is_not_here(zygote, store):
    request = msgspec.structs.replace(put(store), platform="sgx")
    refused(zygote, request, PlatformError, "SGX")


def test_after_all_these_the_zygote_starts_enclaves(zygote, store):
    refused(zygote, put(store, signed=False), SignatureError, "sign")
    with zygote.launch(put(store)) as enclave:
        assert not enclave.ended()
