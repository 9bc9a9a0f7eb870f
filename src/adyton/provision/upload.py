"""What provisioning says, both ends, without IO.

client                              server
Offer (manifest, blobs, …)    ──►
                              ◄──   Missing (digests that the server lacks)
Chunk, Chunk, …               ──►   (each blob verified when its last chunk is there)
                              ◄──   Ready (where the proxy server is, and what to show it)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adyton.crypto.digest import digest_of
from adyton.errors import ImageError, NotFoundError, RemoteProtocolError, ResourceLimitError
from adyton.image.oci import Image, named_blobs
from adyton.provision.store import BlobStore, Incoming
from adyton.provision_pb2 import Blob, Chunk, Offer, ProvisionRequest

CHUNK = 1 << 16  # bytes of one chunk: gRPC lets at least a whole message be under way, see remote.connection
MAX_MANIFEST = 1 << 20
MAX_BLOBS = 256
MAX_SIGNATURES = 16


def offer_of(image: Image, platform: str) -> Offer:
    """What the client offers: the whole image, of which only missing blobs will be sent."""
    blobs = [Blob(digest=digest, size=blob.size) for digest, blob in image.blobs.items()]
    return Offer(
        manifest=image.oci_manifest,
        measurement=image.measurement,
        blobs=blobs,
        signatures=[signature.envelope for signature in image.signatures],
        platform=platform,
    )


def chunks_of(image: Image, missing: Iterable[str]) -> Iterator[ProvisionRequest]:
    """The chunks that the server asked for; RemoteProtocolError, at once, if it asks for what was not offered."""
    digests = list(dict.fromkeys(missing))
    for digest in digests:
        if digest not in image.blobs:
            raise RemoteProtocolError(f"the server asked for blob {digest[:80]!r}, which is not of the image")
    return _chunks(image, digests)


def _chunks(image: Image, digests: Iterable[str]) -> Iterator[ProvisionRequest]:
    for digest in digests:
        blob, offset = image.blobs[digest], 0
        for piece in blob.pieces() if blob.size else [b""]:
            for start in range(0, len(piece) or 1, CHUNK):
                part = piece[start : start + CHUNK]
                last = offset + len(part) == blob.size
                yield ProvisionRequest(chunk=Chunk(digest=digest, offset=offset, data=part, last=last))
                offset += len(part)


class Reception:
    """The server's end of one upload. Nothing of it is in the store until it is whole and verified."""

    def __init__(self, store: BlobStore, offer: Offer) -> None:
        """ImageError, ResourceLimitError: the offer cannot be taken."""
        if len(offer.manifest) > MAX_MANIFEST or len(offer.blobs) > MAX_BLOBS or len(offer.signatures) > MAX_SIGNATURES:
            raise ResourceLimitError("the offered image has too large a manifest, or too many blobs or signatures")
        self._store = store
        self._signatures = list(offer.signatures)
        self._sizes: dict[str, int] = {}
        self._incoming: Incoming | None = None
        self._hold = store.hold([offer.measurement])
        try:
            self._take(store, offer)
        except BaseException:
            self._hold.close()
            raise
        self._due = list(self.missing)

    def _take(self, store: BlobStore, offer: Offer) -> None:
        if not offer.manifest:
            if not store.has(offer.measurement):
                raise NotFoundError(
                    f"the server has no image {offer.measurement}: load it from its file, which uploads it"
                )
            self._manifest = store.read(offer.measurement, MAX_MANIFEST)
            self.missing: list[str] = []
        else:
            if digest_of(offer.manifest) != offer.measurement:
                raise ImageError(
                    f"the offered manifest has the digest {digest_of(offer.manifest)}, not {offer.measurement[:80]}"
                )
            self._manifest = offer.manifest
            self._sizes = {blob.digest: blob.size for blob in offer.blobs}
            self._hold.add(self._sizes)
            self.missing = store.missing(self._sizes)
            if self._sizes != named_blobs(offer.manifest):
                raise ImageError("the offered blobs are not those that the offered manifest names")

    @property
    def complete(self) -> bool:
        return not self._due

    def receive(self, chunk: Chunk) -> None:
        """The next chunk; ImageError, RemoteProtocolError or OSError, after which the upload is lost."""
        if not self._due or chunk.digest != self._due[0]:
            raise RemoteProtocolError(
                f"a chunk of blob {chunk.digest[:80]!r}, which is not the next that was asked for"
            )
        if self._incoming is None:
            self._incoming = Incoming(self._store, chunk.digest, self._sizes[chunk.digest])
        self._incoming.write(chunk.offset, chunk.data)
        if chunk.last:
            self._incoming.finish()
            self._incoming.close()
            self._incoming = None
            self._due.pop(0)

    def image(self) -> Image:
        """The received image; its manifest is put into the store now. ImageError if it is none, or not all of it is here.

        Blobs were verified when they came, and are again by whoever unpacks them.
        """
        image = Image.from_store(self._manifest, self._store.pieces, self._signatures)
        for digest, blob in image.blobs.items():
            if self._store.size(digest) != blob.size:
                raise ImageError(f"blob {digest} in the store is not of the size that the image says")
        self._store.add(self._manifest)
        self._hold.add(named_blobs(self._manifest))
        return image

    def keep(self, data: bytes) -> str:
        """Put one more blob into the store; its digest."""
        self._hold.add([digest_of(data)])
        return self._store.add(data)

    def close(self) -> None:
        """Drop what is half received, and let go of the rest: the image has been started, or will not be."""
        self._hold.close()
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None
