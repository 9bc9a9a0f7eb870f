"""Fuzz targets of images: files, layers, manifests, signatures and uploads."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile

import msgspec
from draw import Draw

from adyton.crypto.digest import digest_of
from adyton.crypto.keys import debug_key
from adyton.errors import ImageError
from adyton.image import archive, dsse
from adyton.image.layers import LayerFile, unpack_layer
from adyton.image.manifest import Entry, Manifest, Parameter, canonical_json, decode_manifest, encode_manifest
from adyton.image.oci import APPLICATION_LAYER, ARTIFACT_TYPE, CONFIG_TYPE, OCI_MANIFEST_TYPE, SIGNATURE_TYPE, Image
from adyton.image.sign import add_signature, verified_signature
from adyton.image.signature import PAYLOAD_TYPE, make_signature, read_signature
from adyton.provision.store import BlobStore
from adyton.provision.upload import Reception
from adyton.provision_pb2 import ProvisionRequest

MANIFEST = Manifest(
    name="pay", entry="pay:", entries=[Entry("pay", [Parameter("path", "str", required=True)], "float", stream=False)]
)


@functools.cache
def signed_image() -> Image:
    """A small image with a debug signature."""
    return add_signature(Image.create(MANIFEST, {"pay.py": b"def pay(path: str) -> float: ...\n"}), debug_key())


def _parts(draw: Draw) -> tuple[bytes, dict[str, bytes], list[bytes]]:
    """OCI manifest, blobs and signatures of the small image, one of them replaced; digests that cover it are made right again."""
    image = signed_image()
    config, layer = image.blobs[image.config_digest].read(), image.layers()[0]
    envelope = image.signatures[0].envelope
    kind = draw.below(6)
    blob = draw.rest()
    if kind == 0:
        config = _canonical(blob)
    elif kind == 1:
        layer = blob
    elif kind == 2:
        envelope = blob
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": APPLICATION_LAYER, "digest": digest_of(layer), "size": len(layer)}],
        }
    )
    if kind == 3:
        manifest = _canonical(blob)
    elif kind == 4:
        envelope = make_signature(digest_of(manifest), MANIFEST, debug_key())
    elif kind == 5:
        envelope = dsse.sign(PAYLOAD_TYPE, _canonical(blob), debug_key())
    return manifest, {digest_of(data): data for data in (config, layer)}, [envelope]


def _canonical(text: bytes) -> bytes:
    """JSON in the one spelling that is accepted; anything else as it is."""
    try:
        return canonical_json(msgspec.json.decode(text))
    except (msgspec.MsgspecError, ValueError, RecursionError, TypeError):
        return text


def image_parts(data: bytes) -> None:
    """What a store or a supervisor is given."""
    manifest, blobs, signatures = _parts(Draw(data))
    image = Image.from_parts(manifest, blobs, signatures)
    verified_signature(image, accept_debug=True)


@functools.cache
def _memory() -> str | None:
    """Where files cost least."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def image_file(data: bytes) -> None:
    """A raw file; or an archive of right headers around anything."""
    draw = Draw(data)
    kind = draw.below(4)
    if kind == 0:
        content = draw.rest()
    elif kind == 1:
        content = _archive(draw)
    else:
        index = draw.take(draw.below(256) * 4) if kind == 2 else b""
        manifest, blobs, signatures = _parts(draw)
        files = {f"blobs/sha256/{digest_of(blob)[7:]}": blob for blob in (manifest, *blobs.values(), *signatures)}
        listed = [(OCI_MANIFEST_TYPE, manifest), *((SIGNATURE_TYPE, each) for each in signatures)]
        entries = [{"mediaType": kind, "digest": digest_of(blob), "size": len(blob)} for kind, blob in listed]
        files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
        files["index.json"] = index or canonical_json({"schemaVersion": 2, "mediaType": "", "manifests": entries})
        content = archive.pack(files)
    with tempfile.NamedTemporaryFile(prefix="adyton-fuzz-", dir=_memory()) as file:
        file.write(content)
        file.flush()
        image = Image.open(file.name)
        assert (
            Image.from_parts(
                image.oci_manifest,
                {digest: blob.read() for digest, blob in image.blobs.items()},
                [each.envelope for each in image.signatures],
            ).measurement
            == image.measurement
        )
        verified_signature(image, accept_debug=True)


def _archive(draw: Draw) -> bytes:
    """A tar archive whose checksums are right, and little else."""
    names = ("a", "a/b", "a/b/c", "b", "../a", "/a", "a/", "a//b", "a/./b", "é", "\x01", "oci-layout", "index.json")
    parts = []
    while draw:
        content = draw.blob()[:4096]
        block = bytearray(archive.header("a", len(content)))
        name = draw.pick(names).encode() if draw.often() else draw.take(draw.below(100))
        block[0:100] = name.ljust(100, b"\0")[:100]
        if draw.below(4) == 0:
            block[156:157] = draw.pick((b"0", b"5", b"\0", b"1", b"2", b"L", b"x"))
        if draw.below(4) == 0:
            field_at, size = draw.pick(((100, 8), (124, 12), (257, 8), (345, 155), (157, 100)))
            block[field_at : field_at + size] = draw.take(size).ljust(size, b"\0")
        if block[156:157] == b"5" and draw.often():
            block[124:136], content = b"00000000000\0", b""
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        parts += [bytes(block), content, bytes(-len(content) % archive.BLOCK)]
    return b"".join(parts) + bytes(draw.pick((1024, 1024, 512, 0)))


def _unpack_file(content: bytes, home: str) -> None:
    """The same from a file gives what it gives in memory; from a file with another digest nothing but an error."""
    path = f"{home}/layer"
    with open(path, "wb") as file:
        file.write(content)
    outcomes = []
    for number, form in enumerate((content, LayerFile(digest_of(content), len(content), path))):
        os.mkdir(f"{home}/{number}")
        try:
            unpack_layer(form, f"{home}/{number}")
            outcomes.append("")
        except ImageError as error:
            outcomes.append(str(error))
        shutil.rmtree(f"{home}/{number}")
    assert outcomes[0] == outcomes[1], outcomes
    os.mkdir(f"{home}/other")
    try:
        unpack_layer(LayerFile(digest_of(content + b"x"), len(content), path), f"{home}/other")
    except ImageError:
        pass
    else:
        raise AssertionError("a layer with another digest was taken")
    shutil.rmtree(f"{home}/other")
    os.unlink(path)


def layer(data: bytes) -> None:
    """A layer, unpacked twice: below an empty folder, and over what is there then. Nothing appears beside the folder."""
    draw = Draw(data)
    content = draw.rest() if draw.below(4) == 0 else _archive(draw)
    with tempfile.TemporaryDirectory(prefix="adyton-fuzz-", dir=_memory()) as home:
        folder = f"{home}/folder"
        os.mkdir(folder)
        os.symlink("/", f"{folder}/b")
        _unpack_file(content, home)
        try:
            unpack_layer(content, folder)
            unpack_layer(content, folder)
        finally:
            assert os.listdir(home) == ["folder"]
            assert os.path.islink(f"{folder}/b")
            for above, folders, files in os.walk(folder):
                assert not any(
                    os.path.islink(f"{above}/{name}") for name in (*folders, *files) if (above, name) != (folder, "b")
                )


def signature(data: bytes) -> None:
    """A raw envelope; or a signed one around anything."""
    draw = Draw(data)
    kind = draw.below(3)
    text = draw.rest()
    if kind == 0:
        dsse.open_envelope(text)
        envelope = text
    elif kind == 1:
        envelope = dsse.sign(PAYLOAD_TYPE, text, debug_key())
    else:
        envelope = _canonical(text)
    read_signature(envelope, signed_image().measurement, MANIFEST)


def manifest(data: bytes) -> None:
    """A config blob as it is; or in the spelling in which it might be accepted."""
    draw = Draw(data)
    canonical = draw.often()
    text = draw.rest()
    decoded = decode_manifest(_canonical(text) if canonical else text)
    assert decode_manifest(encode_manifest(decoded)) == decoded
    decoded.runs_on_python((3, 11))
    assert all(str(entry) for entry in decoded.entries)


def upload(data: bytes) -> None:
    """The steps of an upload, as a server receives them."""
    draw = Draw(data)
    with tempfile.TemporaryDirectory(prefix="adyton-fuzz-", dir=_memory()) as home:
        first = ProvisionRequest.FromString(draw.take(draw.below(256) * 8))
        reception = Reception(BlobStore(home), first.offer)
        try:
            while not reception.complete and draw:
                reception.receive(ProvisionRequest.FromString(draw.take(draw.below(256))).chunk)
            if reception.complete:
                verified_signature(reception.image(), accept_debug=True)
        finally:
            reception.close()
