"""An image file is what it was built as, or it is refused: every blob, the index, and the tar around them."""

import io
import json
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.crypto.digest import digest_of
from adyton.crypto.keys import debug_key
from adyton.errors import AdytonError, ImageError, UsageError
from adyton.image import archive
from adyton.image.manifest import Entry, Manifest, Parameter, canonical_json, decode_manifest, encode_manifest
from adyton.image.oci import APPLICATION_LAYER, CONFIG_TYPE, DEPENDENCY_LAYER, Image
from adyton.image.sign import add_signature, verified_signature

MANIFEST = Manifest(
    name="pay",
    entry="pay:",
    entries=[Entry("mean_pay", [Parameter("path", "str", required=True)], "float", stream=False)],
)
FILES = {"pay.py": b"def mean_pay(path: str) -> float: ...\n", "data/table.bin": bytes(range(256)) * 5}


def signed_image():
    return add_signature(Image.create(MANIFEST, FILES), debug_key())


def image_bytes(tmp_path):
    path = tmp_path / "x.enclave"
    signed_image().save(path)
    return path.read_bytes()


def opened(tmp_path, data):
    path = tmp_path / "changed.enclave"
    path.write_bytes(data)
    return Image.open(path)


def repacked(tmp_path, change, layout=tarfile.USTAR_FORMAT):
    """The image's members changed by `change(dict)`, packed by Python's tarfile."""
    with tarfile.open(fileobj=io.BytesIO(image_bytes(tmp_path))) as tar:
        members = {each.name: tar.extractfile(each).read() for each in tar.getmembers()}
    change(members)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid, info.uname = len(data), 1_700_000_000, 1000, "ann"
            tar.addfile(info, io.BytesIO(data))
    return opened(tmp_path, buffer.getvalue())


def test_an_image_is_read_as_it_was_written(tmp_path):
    image = opened(tmp_path, image_bytes(tmp_path))
    assert image.manifest == MANIFEST
    assert image.measurement == digest_of(image.oci_manifest) == signed_image().measurement
    assert [each.path for each in archive.unpack(image.layers()[0])] == ["data/table.bin", "pay.py"]
    assert image.size == os.path.getsize(tmp_path / "x.enclave")
    assert verified_signature(image, accept_debug=True).signer == debug_key().signer


def test_every_byte_of_the_file_matters_or_changes_nothing(tmp_path):
    """Flip one bit in each 512-byte block's first bytes and at random places: the image is refused, or means the same."""
    data, image = image_bytes(tmp_path), signed_image()
    for place in sorted({*range(0, len(data), 61), *range(0, len(data), 512), len(data) - 1}):
        changed = bytearray(data)
        changed[place] ^= 1
        try:
            found = opened(tmp_path, bytes(changed))
        except ImageError:
            continue
        assert (found.measurement, found.layers(), found.manifest) == (image.measurement, image.layers(), MANIFEST)


def test_every_blob_is_checked(tmp_path):
    names = []
    repacked(tmp_path, lambda members: names.extend(name for name in members if name.startswith("blobs/")))
    assert len(names) == 4
    for name in names:

        def flip(members, name=name):
            members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])

        def drop(members, name=name):
            del members[name]

        def grow(members, name=name):
            members[name] += b" "

        with pytest.raises(ImageError, match="damaged"):
            repacked(tmp_path, flip)
        with pytest.raises(ImageError, match="has no blob"):
            repacked(tmp_path, drop)
        with pytest.raises(ImageError, match="bytes long"):
            repacked(tmp_path, grow)


def test_what_the_index_does_not_name_is_refused(tmp_path):
    with pytest.raises(ImageError, match="index does not name"):
        repacked(tmp_path, lambda members: members.update({"extra": b"x"}))


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_an_image_repacked_by_other_tools_is_the_same_image(tmp_path, layout):
    assert repacked(tmp_path, lambda _: None, layout).measurement == signed_image().measurement


def test_a_removed_signature_is_an_unsigned_image(tmp_path):
    def strip(members):
        index = json.loads(members["index.json"])
        removed = index["manifests"].pop()
        del members["blobs/sha256/" + removed["digest"][7:]]
        members["index.json"] = json.dumps(index).encode()

    assert repacked(tmp_path, strip).signatures == []


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["manifests"].clear(),
        lambda index: index["manifests"].append(index["manifests"][0]),
        lambda index: index.update(schemaVersion=3),
        lambda index: index.pop("manifests"),
        lambda index: index["manifests"][0].update(digest="sha256:../../../etc/passwd"),
        lambda index: index["manifests"][0].update(digest="sha256:" + "0" * 64),
        lambda index: index["manifests"][0].update(size=-1),
        lambda index: index["manifests"][0].update(size=1 << 80),
    ],
)
def test_a_wrong_index_is_refused(tmp_path, change):
    def edit(members):
        index = json.loads(members["index.json"])
        change(index)
        members["index.json"] = json.dumps(index).encode()

    with pytest.raises(ImageError):
        repacked(tmp_path, edit)


@pytest.mark.parametrize("data", [b"", b"hello", bytes(1024), b"[" * 100_000, b"\x1f\x8b" + bytes(600)])
def test_other_files_are_no_images(tmp_path, data):
    with pytest.raises(ImageError, match="not an enclave image"):
        opened(tmp_path, data)


def test_a_file_that_was_cut_off_is_refused_wherever(tmp_path):
    data = image_bytes(tmp_path)
    for length in range(0, len(data) - 1024, 300):
        with pytest.raises(ImageError):
            opened(tmp_path, data[:length])


def test_a_missing_file_is_the_callers_mistake(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        Image.open(tmp_path / "none.enclave")
    with pytest.raises(UsageError, match="cannot be read"):
        Image.open(tmp_path)


def test_a_file_that_changes_after_it_was_opened_is_noticed(tmp_path):
    image = opened(tmp_path, image_bytes(tmp_path))
    path = tmp_path / "changed.enclave"
    path.write_bytes(path.read_bytes().replace(b"def mean_pay", b"def evil_pay"))
    with pytest.raises(ImageError, match="was changed"):
        image.layers()
    path.unlink()
    with pytest.raises(ImageError, match="cannot be read any more"):
        image.layers()


# -- the OCI manifest ------------------------------------------------------------------------------------------------------


def parts():
    image = Image.create(MANIFEST, FILES)
    return json.loads(image.oci_manifest), {digest: blob.read() for digest, blob in image.blobs.items()}


def from_parts(manifest, blobs):
    return Image.from_parts(canonical_json(manifest), blobs, [])


def test_the_media_types_are_those_of_the_specification():
    manifest, _ = parts()
    assert manifest["artifactType"] == "application/vnd.adyton.enclave.v1"
    assert manifest["config"]["mediaType"] == CONFIG_TYPE
    assert [layer["mediaType"] for layer in manifest["layers"]] == [APPLICATION_LAYER]
    assert APPLICATION_LAYER == "application/vnd.adyton.layer.application.v1.tar"


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(schemaVersion=1),
        lambda manifest: manifest.update(artifactType="application/x"),
        lambda manifest: manifest.update(mediaType="application/x"),
        lambda manifest: manifest.update(annotations={}),
        lambda manifest: manifest.pop("layers"),
        lambda manifest: manifest["layers"].clear(),
        lambda manifest: manifest["layers"].append(manifest["layers"][0]),
        lambda manifest: manifest["layers"].append(manifest["config"]),
        lambda manifest: manifest["layers"][0].update(mediaType=DEPENDENCY_LAYER),
        lambda manifest: manifest["layers"][0].update(digest=manifest["layers"][0]["digest"].upper()),
        lambda manifest: manifest["layers"][0].update(digest=manifest["layers"][0]["digest"] + "\n"),
        lambda manifest: manifest["layers"][0].update(size=1),
        lambda manifest: manifest["layers"][0].update(urls=["http://example.com"]),
        lambda manifest: manifest["config"].update(size=(1 << 20) + 1),
    ],
)
def test_any_other_oci_manifest_is_refused(change):
    manifest, blobs = parts()
    from_parts(manifest, blobs)
    change(manifest)
    with pytest.raises(ImageError):
        from_parts(manifest, blobs)


def test_the_same_manifest_in_another_spelling_is_refused():
    manifest, blobs = parts()
    for text in (json.dumps(manifest).encode(), canonical_json(manifest) + b"\n"):
        with pytest.raises(ImageError, match="canonical"):
            Image.from_parts(text, blobs, [])
    twice = canonical_json(manifest).replace(b'"schemaVersion":2', b'"schemaVersion":1,"schemaVersion":2')
    with pytest.raises(ImageError, match="canonical"):
        Image.from_parts(twice, blobs, [])


def test_wrong_and_missing_blobs_from_a_store_are_refused():
    manifest, blobs = parts()
    for digest in blobs:
        for changed in ({**blobs, digest: blobs[digest] + b"x"}, {**blobs, digest: bytes(len(blobs[digest]))}):
            with pytest.raises(ImageError, match="not what the image says"):
                from_parts(manifest, changed)
        with pytest.raises(ImageError, match="has no blob"):
            from_parts(manifest, {other: data for other, data in blobs.items() if other != digest})


@given(st.binary(max_size=300))
def test_nothing_but_image_errors_leaves_the_readers(data):
    with pytest.raises(ImageError):
        Image.from_parts(data, {}, [])
    with pytest.raises(ImageError):
        decode_manifest(data)


@settings(max_examples=60)
@given(data=st.data())
def test_garbage_in_the_place_of_a_file_is_an_error_of_ours(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("garbage")
    whole = image_bytes(folder)
    start = data.draw(st.integers(0, len(whole)))
    junk = data.draw(st.binary(max_size=700))
    try:
        image = opened(folder, whole[:start] + junk + whole[start + len(junk) :])
        assert image.measurement == signed_image().measurement
    except AdytonError:
        pass


# -- the config blob -------------------------------------------------------------------------------------------------------


def config(**changes):
    content = json.loads(encode_manifest(MANIFEST))
    content.update(changes)
    return canonical_json({name: value for name, value in content.items() if value is not ...})


def test_a_manifest_is_read_as_it_was_written():
    assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST
    assert decode_manifest(config()) == MANIFEST


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../pay"},
        {"name": ""},
        {"name": "pay\n"},
        {"entry": "pay"},
        {"entry": "pay.:x"},
        {"entry": "../pay:x"},
        {"entry": "pay:x.y"},
        {"entry": 1},
        {"entries": [{"name": "a", "parameters": [], "returns": "", "stream": False}] * 2},
        {"entries": [{"name": "not a name", "parameters": [], "returns": "", "stream": False}]},
        {"runtime": "java"},
        {"abi": "adyton-0"},
        {"python": "3.9"},
        {"python": "latest"},
        {"platforms": []},
        {"platforms": ["b", "a"]},
        {"product_id": -1},
        {"product_id": 65536},
        {"security_version": 1.5},
        {"host_calls": ["net", "file"]},
        {"host_calls": ["everything"]},
        {"limits": {"memory": 0, "threads": None, "files": None}},
        {"limits": {"memory": (48 << 20) - 1, "threads": None, "files": None, "cpu": None}},
        {"limits": ...},
        {"surprise": 1},
    ],
    ids=str,
)
def test_any_other_manifest_is_refused(changes):
    with pytest.raises(ImageError):
        decode_manifest(config(**changes))


def test_a_field_that_has_a_default_must_be_there_all_the_same():
    with pytest.raises(ImageError, match="canonical"):
        decode_manifest(config(product_id=...))


def test_an_entry_reads_as_its_signature():
    parameters = [
        Parameter("path", "str", required=True),
        Parameter("scale", "float", required=False),
        Parameter("plain", "", required=False),
        Parameter("more", "int", required=False, kind="rest"),
        Parameter("key", "str", required=True, kind="keyword"),
        Parameter("others", "", required=False, kind="keywords"),
    ]
    entry = Entry("f", parameters, "list[int]", stream=False)
    assert str(entry) == "f(path: str, scale: float = …, plain=…, *more: int, key: str, **others) -> list[int]"
    assert str(Entry("g", [Parameter("key", "", required=True, kind="keyword")], "", stream=False)) == "g(*, key)"
