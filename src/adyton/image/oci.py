"""An enclave image: an OCI image layout (image-spec 1.1) in one tar file, and its measurement.

    oci-layout                  {"imageLayoutVersion":"1.0.0"}
    index.json                  descriptors: the OCI manifest, then the signatures, which the measurement does not cover
    blobs/sha256/HEX            the OCI manifest → the config (adyton's Manifest) and the layers

The measurement is the SHA-256 of the OCI manifest, which names every other blob by digest. It is accepted in canonical JSON only, so
there is one measurement for one content. Nothing is taken from a file, a store or a peer before its digest was checked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, BinaryIO

import msgspec

from adyton.crypto.digest import digest_of, is_digest
from adyton.errors import ImageError, UsageError
from adyton.image import archive
from adyton.image.atomic_file import replacing
from adyton.image.layers import PIECE, LayerFile, pieces_of
from adyton.image.manifest import MAX_CONFIG, Manifest, canonical_json, decode_manifest, encode_manifest
from adyton.image.signature import Signature, read_signature

ARTIFACT_TYPE = "application/vnd.adyton.enclave.v1"
CONFIG_TYPE = "application/vnd.adyton.manifest.v1+json"
APPLICATION_LAYER = "application/vnd.adyton.layer.application.v1.tar"
DEPENDENCY_LAYER = "application/vnd.adyton.layer.dependencies.v1.tar"
SIGNATURE_TYPE = "application/vnd.dsse.envelope.v1+json"
OCI_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"

MAX_OCI_MANIFEST = 1 << 20  # bytes; also of index.json
MAX_LAYERS = 128
MAX_SIGNATURES = 16

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_BLOBS = "blobs/sha256/"

Digest = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
Size = Annotated[int, msgspec.Meta(ge=0, le=archive.MAX_FILE)]


class Descriptor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One blob that the OCI manifest names."""

    mediaType: str  # noqa: N815 - names of the format
    digest: Digest
    size: Size

    @property
    def media_type(self) -> str:
        return self.mediaType


class _OciManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schemaVersion: int  # noqa: N815
    mediaType: str  # noqa: N815
    artifactType: str  # noqa: N815
    config: Descriptor
    layers: Annotated[list[Descriptor], msgspec.Meta(min_length=1, max_length=MAX_LAYERS)]


class _IndexEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    mediaType: str  # noqa: N815
    digest: Digest
    size: Size
    artifactType: str = ""  # noqa: N815


class _Index(msgspec.Struct, frozen=True):
    schemaVersion: int  # noqa: N815
    mediaType: str  # noqa: N815
    manifests: list[_IndexEntry]


class _Layout(msgspec.Struct, frozen=True):
    imageLayoutVersion: str  # noqa: N815


Source = Callable[[], Iterable[bytes]]  # a blob's bytes from its beginning, in pieces of any size
# Made at import: msgspec's first look at a type must not be two threads' at once, of which one would see it half done.
_OCI_MANIFEST_DECODER = msgspec.json.Decoder(_OciManifest)
_INDEX_DECODER = msgspec.json.Decoder(_Index)
_LAYOUT_DECODER = msgspec.json.Decoder(_Layout)


@dataclass(frozen=True)
class Blob:
    """A blob of an image, wherever its bytes are. ImageError, at the end of the bytes at the latest, if they are not what they were."""

    digest: str
    size: int
    _source: Source

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, verified each time: until this ends without an error they may be anybody's."""
        state, length = hashlib.sha256(), 0
        for piece in self._source():
            state.update(piece)
            length += len(piece)
            if length > self.size:
                break
            yield piece
        if length != self.size or state.hexdigest() != self.digest[7:]:
            raise ImageError(f"blob {self.digest} is not what the image says it is: the image was changed")

    def read(self) -> bytes:
        """All of its bytes, verified."""
        return b"".join(self.pieces())

    def verify(self) -> None:
        """Read it once."""
        for _ in self.pieces():
            pass


class Image:
    """A verified image. Made by `open`, `from_parts`, `from_store` or `create`; each raises ImageError for what is none.

    `blobs`: config and layers by digest; `signatures`: all that it has, valid or not (`verified_signature` picks one);
    `size`: of the image file in bytes, or what one with these contents would have.
    """

    def __init__(
        self, oci_manifest: bytes, source: Callable[[Descriptor], Source], signatures: Iterable[bytes]
    ) -> None:
        self.oci_manifest = oci_manifest
        self.measurement = digest_of(oci_manifest)
        parsed = _parse_oci_manifest(oci_manifest)
        self.layer_descriptors = tuple(parsed.layers)
        self.blobs: Mapping[str, Blob] = {
            each.digest: Blob(each.digest, each.size, source(each)) for each in (parsed.config, *parsed.layers)
        }
        self.config_digest = parsed.config.digest
        if parsed.config.size > MAX_CONFIG:
            raise ImageError(f"the manifest of the image is longer than {MAX_CONFIG} bytes")
        self.manifest: Manifest = decode_manifest(self.blobs[self.config_digest].read())
        envelopes = list(dict.fromkeys(signatures))
        if len(envelopes) > MAX_SIGNATURES:
            raise ImageError(f"the image has {len(envelopes)} signatures; at most {MAX_SIGNATURES} are accepted")
        self.signatures: list[Signature] = [
            read_signature(envelope, self.measurement, self.manifest) for envelope in envelopes
        ]

    def __repr__(self) -> str:
        return f"<Image {self.manifest.name} {self.measurement}>"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Image:
        """The image in a file, every digest verified. UsageError if the file cannot be read."""
        return _open(cls, os.fspath(path))

    @classmethod
    def from_parts(cls, oci_manifest: bytes, blobs: Mapping[str, bytes], signatures: Iterable[bytes]) -> Image:
        """From bytes in memory: the OCI manifest, config and layers by digest, DSSE envelopes."""

        def pieces(digest: str, _size: int) -> Iterable[bytes]:
            if digest not in blobs:
                raise ImageError(f"the image has no blob {digest}, which its manifest names")
            return [blobs[digest]]

        return cls.from_store(oci_manifest, pieces, signatures).verified()

    @classmethod
    def from_store(
        cls, oci_manifest: bytes, pieces: Callable[[str, int], Iterable[bytes]], signatures: Iterable[bytes]
    ) -> Image:
        """From a store of blobs: `pieces(digest, size)` gives the bytes of one of that size, or raises ImageError.

        The layers are not read now: `verified`, or whoever unpacks them, verifies them.
        """

        def source(descriptor: Descriptor) -> Source:
            return lambda: pieces(descriptor.digest, descriptor.size)

        return cls(oci_manifest, source, signatures)

    def verified(self) -> Image:
        """The image, after a look at every byte of its layers; ImageError."""
        for descriptor in self.layer_descriptors:
            self.blobs[descriptor.digest].verify()
        return self

    @classmethod
    def create(
        cls, manifest: Manifest, application: Mapping[str, bytes], dependencies: LayerFile | None = None
    ) -> Image:
        """A new, unsigned image of a manifest, the application's files by path and its dependencies; equal arguments give equal bytes."""
        config, layer = encode_manifest(manifest), archive.pack(application)
        parts = {digest_of(data): data for data in (config, layer)}
        layers = [Descriptor(APPLICATION_LAYER, digest_of(layer), len(layer))]
        if dependencies is not None:
            layers.append(Descriptor(DEPENDENCY_LAYER, dependencies.digest, dependencies.size))
        oci_manifest = canonical_json(
            _OciManifest(
                schemaVersion=2,
                mediaType=OCI_MANIFEST_TYPE,
                artifactType=ARTIFACT_TYPE,
                config=Descriptor(CONFIG_TYPE, digest_of(config), len(config)),
                layers=layers,
            )
        )

        def source(descriptor: Descriptor) -> Source:
            if dependencies is not None and descriptor.digest == dependencies.digest:
                return dependencies.pieces
            return lambda: [parts[descriptor.digest]]

        return cls(oci_manifest, source, [])

    def with_signature(self, envelope: bytes) -> Image:
        """The image with one signature more; one of the same signer and debug flag is replaced."""
        new = read_signature(envelope, self.measurement, self.manifest)
        kept = [each.envelope for each in self.signatures if (each.signer, each.debug) != (new.signer, new.debug)]
        return Image(self.oci_manifest, lambda descriptor: self.blobs[descriptor.digest].pieces, [*kept, envelope])

    def layers(self) -> list[bytes]:
        """The layers' bytes, verified, bottom first."""
        return [self.blobs[descriptor.digest].read() for descriptor in self.layer_descriptors]

    @property
    def size(self) -> int:
        return sum(archive.BLOCK + size + -size % archive.BLOCK for _, size, _ in self._files()) + 2 * archive.BLOCK

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the image file, which appears whole or not at all; UsageError if it cannot be written."""
        name = os.fspath(path)
        try:
            with replacing(name) as file:
                for member, size, source in self._files():
                    file.write(archive.header(member, size))
                    for piece in source():
                        file.write(piece)
                    file.write(bytes(-size % archive.BLOCK))
                file.write(bytes(2 * archive.BLOCK))
        except OSError as error:
            raise UsageError(
                f"the image cannot be written to {name}: {error.strerror}. Name a file in a folder of yours"
            ) from error

    def _files(self) -> list[tuple[str, int, Source]]:
        """Name, size and content of all members of the image file, in order."""
        small = {_BLOBS + digest_of(each.envelope)[7:]: each.envelope for each in self.signatures}
        small |= {_BLOBS + self.measurement[7:]: self.oci_manifest, "oci-layout": _LAYOUT, "index.json": self._index()}
        files: dict[str, tuple[int, Source]] = {name: (len(data), _constant(data)) for name, data in small.items()}
        files |= {_BLOBS + digest[7:]: (blob.size, blob.pieces) for digest, blob in self.blobs.items()}
        return [(name, *files[name]) for name in sorted(files)]

    def _index(self) -> bytes:
        entries = [_IndexEntry(OCI_MANIFEST_TYPE, self.measurement, len(self.oci_manifest), ARTIFACT_TYPE)]
        entries += [
            _IndexEntry(SIGNATURE_TYPE, digest_of(each.envelope), len(each.envelope), SIGNATURE_TYPE)
            for each in sorted(self.signatures, key=lambda each: (each.debug, each.signer, each.envelope))
        ]
        return canonical_json(_Index(2, OCI_INDEX_TYPE, entries))


def _constant(data: bytes) -> Source:
    return lambda: [data]


def named_blobs(oci_manifest: bytes) -> dict[str, int]:
    """The blobs that a manifest names, and their sizes in bytes; ImageError if it is none of an enclave."""
    parsed = _parse_oci_manifest(oci_manifest)
    return {each.digest: each.size for each in (parsed.config, *parsed.layers)}


def _parse_oci_manifest(data: bytes) -> _OciManifest:
    if len(data) > MAX_OCI_MANIFEST:
        raise ImageError(f"the OCI manifest is longer than {MAX_OCI_MANIFEST} bytes")
    try:
        parsed = _OCI_MANIFEST_DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ImageError(f"the OCI manifest is malformed: {error}") from error
    if canonical_json(parsed) != data:
        raise ImageError("the OCI manifest is not in canonical form: build the image again with `adyton build`")
    # Each field, what it says, and what it must say.
    checks = (
        ("schemaVersion", parsed.schemaVersion, 2),
        ("mediaType", parsed.mediaType, OCI_MANIFEST_TYPE),
        ("artifactType", parsed.artifactType, ARTIFACT_TYPE),
        ("config.mediaType", parsed.config.mediaType, CONFIG_TYPE),
    )
    for field, got, expected in checks:
        if got != expected:
            raise ImageError(
                f"this is not an enclave image that this adyton knows: {field} is {got!r}, expected {expected!r}"
            )
    kinds = [layer.mediaType for layer in parsed.layers]
    known = [kind for kind in (APPLICATION_LAYER, DEPENDENCY_LAYER) for each in kinds if each == kind]
    if kinds != known or kinds[0] != APPLICATION_LAYER or kinds.count(DEPENDENCY_LAYER) > 1:
        raise ImageError(
            "this is not an enclave image that this adyton knows: its layers are not the application's,"
            f" and then at most one of dependencies, but {', '.join(kind[:80] for kind in kinds[:4])}"
        )
    digests = [each.digest for each in (parsed.config, *parsed.layers)]
    if len(set(digests)) != len(digests):
        raise ImageError("the OCI manifest names the same blob twice")
    return parsed


def _open(cls: type[Image], path: str) -> Image:
    try:
        with open(path, "rb") as file:
            members = _members(file, path)
            index = _read_index(file, members)
            oci_manifest, envelopes = _indexed(file, members, index)

            def source(descriptor: Descriptor) -> Source:
                member = _blob_member(members, descriptor.digest, descriptor.size)
                _verify(file, member, descriptor.digest)
                return lambda: pieces_of(path, member.offset, member.size)

            image = cls(oci_manifest, source, envelopes)
    except OSError as error:
        raise UsageError(f"the image {path} cannot be read: {error.strerror}. Build it with `adyton build`") from error
    known = {digest[7:] for digest in (image.measurement, *image.blobs, *(digest_of(each) for each in envelopes))}
    strangers = set(members) - {"oci-layout", "index.json", *(_BLOBS + digest for digest in known)}
    if strangers:
        raise ImageError(f"the image holds {min(strangers)[:80]!r}, which its index does not name")
    return image


def _members(file: BinaryIO, path: str) -> dict[str, archive.Member]:
    """The files in the archive by name."""

    def read(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length)

    try:
        found = archive.members(os.fstat(file.fileno()).st_size, read)
        return {member.path: member for member in found if not member.folder}
    except ImageError as error:
        raise ImageError(f"{path} is not an enclave image: {error}") from None


def _content(file: BinaryIO, members: Mapping[str, archive.Member], name: str, limit: int) -> bytes:
    member = members.get(name)
    if member is None:
        raise ImageError(f"this is not an enclave image: it has no {name}")
    if member.size > limit:
        raise ImageError(f"{name} in the image is longer than {limit} bytes")
    file.seek(member.offset)
    return file.read(member.size)


def _read_index(file: BinaryIO, members: Mapping[str, archive.Member]) -> _Index:
    try:
        layout = _LAYOUT_DECODER.decode(_content(file, members, "oci-layout", 4096))
        index = _INDEX_DECODER.decode(_content(file, members, "index.json", MAX_OCI_MANIFEST))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ImageError(f"the index of the image is malformed: {error}") from error
    if layout.imageLayoutVersion != "1.0.0" or index.schemaVersion != 2:
        raise ImageError("the image is of a version of the OCI image layout that this adyton does not know")
    return index


def _indexed(file: BinaryIO, members: Mapping[str, archive.Member], index: _Index) -> tuple[bytes, list[bytes]]:
    """The OCI manifest and the signatures, which are the blobs that only the index names."""
    manifests = [entry for entry in index.manifests if entry.mediaType == OCI_MANIFEST_TYPE]
    if len(manifests) != 1:
        raise ImageError(f"the index names {len(manifests)} OCI manifests; an enclave image has exactly one")
    signatures = [entry for entry in index.manifests if entry.mediaType == SIGNATURE_TYPE]
    if len(signatures) > MAX_SIGNATURES:
        raise ImageError(f"the image has {len(signatures)} signatures; at most {MAX_SIGNATURES} are accepted")
    found = []
    for entry in (*manifests, *signatures):
        member = _blob_member(members, entry.digest, entry.size)
        data = _content(file, members, member.path, MAX_OCI_MANIFEST)
        if digest_of(data) != entry.digest:
            raise ImageError(
                f"blob {entry.digest} of the image is damaged: its bytes have the digest {digest_of(data)}"
            )
        found.append(data)
    return found[0], found[1:]


def _blob_member(members: Mapping[str, archive.Member], digest: str, size: int) -> archive.Member:
    member = members.get(_BLOBS + digest[7:])
    if member is None or not is_digest(digest):
        raise ImageError(f"the image has no blob {digest}, which it names")
    if member.size != size:
        raise ImageError(f"blob {digest} of the image is {member.size} bytes long, not {size} as it says")
    return member


def _verify(file: BinaryIO, member: archive.Member, digest: str) -> None:
    state = hashlib.sha256()
    file.seek(member.offset)
    left = member.size
    while left:
        part = file.read(min(left, PIECE))
        if not part:
            raise ImageError(f"the image was cut off in the middle of blob {digest}")
        state.update(part)
        left -= len(part)
    if state.hexdigest() != digest[7:]:
        raise ImageError(f"blob {digest} of the image is damaged: its bytes have the digest sha256:{state.hexdigest()}")
