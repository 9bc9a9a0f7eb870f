"""Provisioning without IO: what a server takes into its store, and what it refuses, in whatever order chunks come."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.crypto.digest import digest_of
from adyton.crypto.keys import debug_key
from adyton.errors import ImageError, NotFoundError, RemoteProtocolError, ResourceLimitError
from adyton.image.manifest import Entry, Manifest
from adyton.image.oci import Image
from adyton.image.sign import add_signature
from adyton.provision.store import BlobStore, Incoming
from adyton.provision.upload import Reception, chunks_of, offer_of
from adyton.provision_pb2 import Chunk, Offer


def make_image(content: bytes = b"x = 1\n") -> Image:
    manifest = Manifest(name="demo", entry="demo:", entries=[Entry("f", [], "int", stream=False)])
    return add_signature(Image.create(manifest, {"demo.py": content}), debug_key())


IMAGE = make_image()


@pytest.fixture
def store(tmp_path) -> BlobStore:
    return BlobStore(str(tmp_path / "store"))


def files(store: BlobStore) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(folder, name), store.directory)
        for folder, _, names in os.walk(store.directory)
        for name in names
    )


def test_an_upload_brings_what_is_missing_and_nothing_twice(store):
    reception = Reception(store, offer_of(IMAGE, "sim"))
    assert reception.missing == list(IMAGE.blobs)
    for request in chunks_of(IMAGE, reception.missing):
        assert not reception.complete
        reception.receive(request.chunk)
    assert reception.complete
    assert reception.image().measurement == IMAGE.measurement
    assert [f"blobs/sha256/{d[7:]}" for d in sorted([*IMAGE.blobs, IMAGE.measurement])] == files(store)

    again = Reception(store, offer_of(IMAGE, "sim"))
    assert again.complete
    changed = Reception(store, offer_of(make_image(b"x = 2\n"), "sim"))
    assert len(changed.missing) == 1  # the layer; the config is the same

    by_name = Reception(store, Offer(measurement=IMAGE.measurement))
    assert by_name.complete
    assert by_name.image().manifest.name == "demo"


def test_what_is_offered_must_be_what_it_says(store):
    offer = offer_of(IMAGE, "sim")
    offer.measurement = digest_of(b"another")
    with pytest.raises(ImageError, match="digest"):
        Reception(store, offer)
    with pytest.raises(NotFoundError, match="the server has no image"):
        Reception(store, Offer(measurement=IMAGE.measurement))
    for path in ("../../etc/passwd", "sha256:../x", "", "sha256:" + "A" * 64):
        with pytest.raises(ImageError, match="not a digest"):
            Reception(store, Offer(measurement=path))
        offer = offer_of(IMAGE, "sim")
        offer.blobs[0].digest = path
        with pytest.raises(ImageError, match="not a digest"):
            Reception(store, offer)
    large = offer_of(IMAGE, "sim")
    large.manifest = bytes(2 << 20)
    with pytest.raises(ResourceLimitError):
        Reception(store, large)


CHUNKS = st.builds(
    Chunk,
    digest=st.sampled_from([*IMAGE.blobs, IMAGE.measurement, "sha256:x", ""]),
    offset=st.sampled_from([0, 0, 1, 512, 1 << 40]),
    data=st.one_of(st.sampled_from([blob.read() for blob in IMAGE.blobs.values()]), st.binary(max_size=20)),
    last=st.booleans(),
)


@given(st.lists(CHUNKS, max_size=6))
def test_no_order_of_chunks_puts_a_wrong_blob_into_the_store(tmp_path_factory, chunks):
    store = BlobStore(str(tmp_path_factory.mktemp("store")))
    reception = Reception(store, offer_of(IMAGE, "sim"))
    with contextlib.closing(reception), contextlib.suppress(ImageError, RemoteProtocolError, ResourceLimitError):
        for chunk in chunks:
            reception.receive(chunk)
    for path in files(store):
        digest = "sha256:" + os.path.basename(path)
        assert digest_of(store.read(digest)[:]) == digest
        assert digest in IMAGE.blobs


def test_a_cut_upload_leaves_nothing(store):
    reception = Reception(store, offer_of(IMAGE, "sim"))
    first = IMAGE.blobs[reception.missing[0]].read()
    reception.receive(Chunk(digest=reception.missing[0], offset=0, data=first[:10]))
    assert len(files(store)) == 1
    reception.close()
    assert files(store) == []


def test_an_upload_to_a_full_disk_leaves_nothing(store, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    reception = Reception(store, offer_of(IMAGE, "sim"))
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        reception.receive(next(chunks_of(IMAGE, reception.missing)).chunk)
    monkeypatch.undo()
    reception.close()
    assert files(store) == []


def test_a_client_sends_only_blobs_of_its_image():
    with pytest.raises(RemoteProtocolError, match="not of the image"):
        next(chunks_of(IMAGE, [digest_of(b"/etc/shadow")]))


def test_two_uploads_of_one_blob_at_once_both_succeed(store):
    data = b"content"
    with Incoming(store, digest_of(data), 7) as one, Incoming(store, digest_of(data), 7) as other:
        for incoming in (one, other):
            incoming.write(0, data)
        one.finish()
        other.finish()
    assert store.read(digest_of(data)) == data
    assert len(files(store)) == 1


def test_a_damaged_blob_is_not_given_out(store):
    digest = store.add(b"content")
    with open(store.path(digest), "wb") as file:
        file.write(b"changed")
    with pytest.raises(ImageError, match="damaged"):
        store.read(digest)
