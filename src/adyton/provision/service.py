"""The gRPC service of provisioning, the same in a proxy server (for its one enclave) and in a provision server."""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509

from adyton.attestation import attesters
from adyton.attestation.identity import PLATFORMS, Platform
from adyton.attestation.sealing.owners import owner_name
from adyton.errors import (
    AdytonError,
    ConnectionLostError,
    DeadlineError,
    ImageError,
    NotFoundError,
    PlatformError,
    RemoteProtocolError,
    ResourceLimitError,
    UnauthenticatedError,
    UsageError,
)
from adyton.image.sign import verified_signature
from adyton.provision.patience import Patience
from adyton.provision.signatures import KnownSignatures
from adyton.provision.store import BlobStore
from adyton.provision.upload import Reception
from adyton.provision_pb2 import DialBackTo, Missing, Offer, ProvisionRequest, ProvisionResponse, Ready
from adyton.remote.connection import abort, packed
from adyton.remote.dial_address import target_for

OFFER_PATIENCE = 10.0  # seconds for the offer; who is being served takes one of a bounded number of threads
UPLOAD_PATIENCE = 30.0  # seconds for the next part of an upload
SLOWEST_UPLOAD = 4096  # bytes in a second; who is slower may be so for UPLOAD_PATIENCE
MAX_CERTIFICATE = 1 << 13  # bytes of PEM


@dataclass(frozen=True)
class Order:
    """A verified image to start an enclave of: digests of blobs that the store has."""

    measurement: str
    signatures: list[str]
    platform: Platform
    owner: str  # of its sealed files: a file name
    wanted: Callable[[], bool] = lambda: True  # whether the client still waits for it
    dial_back: DialBackTo | None = None  # checked: where the proxy server is to dial

    def sealed_folder(self, directory: str | None) -> str:
        """For its sealed files, in a directory for those of all images; "": there is none."""
        return os.path.join(os.path.abspath(directory), self.owner) if directory else ""


Start = Callable[[Order], Ready]
Find = Callable[[str], Ready | None]
Choose = Callable[[str], Platform]  # "auto" or the name of a platform → which it is to be; PlatformError


def only(platform: Platform) -> Choose:
    """The choice of a server whose enclaves are all on one platform."""

    def choose(wanted: str) -> Platform:
        if wanted not in ("auto", platform):
            raise PlatformError(
                f"platform {wanted} is not to be had on this server; it has: {platform}. Ask for that (--platform), or another server"
            )
        return platform

    return choose


class ProvisionService:
    """Receives images, verifies them, and has `start` start a proxy server. `token`: what callers must show; "" for none.

    `check` raises AdytonError when nothing can be started: so nobody holds a thread by an offer that does not come. `choose`: where enclaves run.
    `find`: of an enclave that runs, what its loader was told.
    """

    def __init__(
        self,
        store: BlobStore,
        start: Start,
        token: str = "",
        check: Callable[[], None] = lambda: None,
        choose: Choose = attesters.chosen,
        find: Find = lambda _: None,
    ) -> None:
        self._choose = choose
        self._find = find
        self._check = check
        self._store = store
        self._start = start
        self._token = token
        self._known = KnownSignatures()

    def handler(self) -> grpc.GenericRpcHandler:
        """The gRPC service."""
        method = grpc.stream_stream_rpc_method_handler(
            self._provision,
            request_deserializer=ProvisionRequest.FromString,
            response_serializer=ProvisionResponse.SerializeToString,
        )
        handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(
            "adyton.ProvisionService", {"Provision": method}
        )
        return handler

    def _provision(self, requests: Iterator[ProvisionRequest], context: Any) -> Iterator[ProvisionResponse]:
        try:
            self._authenticate(context)
            self._check()
            yield from self.serve(requests, context, context.peer())
        except AdytonError as error:
            abort(context, error)
        except OSError as error:  # a full disk, and the like
            abort(
                context,
                ResourceLimitError(f"the server cannot store the image: {error.strerror}; its operator must make room"),
            )

    def _authenticate(self, context: Any) -> None:
        if not self._token:
            return
        shown = dict(context.invocation_metadata()).get("authorization", "")
        if not shown:
            raise UnauthenticatedError("the server wants a token, and none was shown: give its one as --token-file")
        if not hmac.compare_digest(shown.encode(), f"Bearer {self._token}".encode()):
            raise UnauthenticatedError("the token is not the one of the server: give its one as --token-file")

    def answers(
        self, requests: Iterator[ProvisionRequest], rpc: Any, failures: list[AdytonError]
    ) -> Iterator[ProvisionResponse]:
        """`serve` for a client that has been dialled, by the call `rpc`; what failed is said to it, and put into `failures`."""
        try:
            yield from self.serve(requests, rpc, "")
        except AdytonError as error:
            failures.append(error)
        except OSError as error:
            failures.append(ResourceLimitError(f"the proxy server cannot store the image: {error.strerror}"))
        except grpc.RpcError:
            failures.append(ConnectionLostError("the client went while it sent its image"))
        if failures:
            yield ProvisionResponse(failed=packed(failures[0]))

    def serve(self, requests: Iterator[ProvisionRequest], rpc: Any, peer: str) -> Iterator[ProvisionResponse]:
        """One conversation; `rpc`: gRPC's context or call. `peer`: as gRPC names the client; "": it was dialled. Raises AdytonError, OSError."""
        with Patience(OFFER_PATIENCE, rpc.cancel):
            first = next(requests, None)
        if first is not None and first.WhichOneof("step") == "find":
            yield ProvisionResponse(ready=self._found(first.find.enclave_id))
            return
        if first is None or first.WhichOneof("step") != "offer":
            raise RemoteProtocolError("provisioning begins with an offer")
        offer: Offer = first.offer
        if offer.platform not in ("auto", *PLATFORMS):
            raise PlatformError(
                f"there is no platform {offer.platform[:32]!r}: it is auto or one of {' '.join(PLATFORMS)}"
            )
        platform = self._choose(offer.platform)
        if not offer.manifest:
            offer.signatures.extend(self._known.of(offer.measurement))
        dial_back = _checked(offer.dial_back, peer) if offer.HasField("dial_back") else None
        reception = Reception(self._store, offer)
        try:
            yield ProvisionResponse(missing=Missing(digests=reception.missing))
            self._receive(reception, requests, rpc)
            image = reception.image()
            signature = verified_signature(image, accept_debug=True)
            self._known.remember(image.measurement, [signature.envelope for signature in image.signatures])
            signatures = [reception.keep(signature.envelope) for signature in image.signatures]
            owner = owner_name(image.manifest.seals_to, image.measurement, signature.signer, signature.product_id)
            order = Order(image.measurement, signatures, platform, owner, rpc.is_active, dial_back)
            yield ProvisionResponse(ready=self._start(order))
        finally:
            reception.close()

    def _found(self, enclave_id: str) -> Ready:
        ready = self._find(enclave_id)
        if ready is None:
            raise NotFoundError(
                f"this server has no enclave {enclave_id[:32]!r} that can be asked for evidence: it has ended, or never was; `adyton call -v` says an enclave's ID"
            )
        return ready

    def _receive(self, reception: Reception, requests: Iterator[ProvisionRequest], context: Any) -> None:
        until = time.monotonic() + UPLOAD_PATIENCE
        with Patience(UPLOAD_PATIENCE, context.cancel) as patience:
            while not reception.complete:
                request = next(requests, None)
                if request is None:
                    raise ImageError("the upload ended before all blobs had arrived")
                if request.WhichOneof("step") != "chunk" or not (request.chunk.data or request.chunk.last):
                    raise RemoteProtocolError("after the offer, chunks are expected, with something in them")
                reception.receive(request.chunk)
                patience.renew()
                now = time.monotonic()
                # Who was fast does not earn the right to hold what was uploaded for long.
                until = min(until + len(request.chunk.data) / SLOWEST_UPLOAD, now + UPLOAD_PATIENCE)
                if now > until:
                    raise DeadlineError(
                        f"the upload brings fewer than {SLOWEST_UPLOAD} bytes in a second: it was ended"
                    )


def _checked(offered: DialBackTo, peer: str) -> DialBackTo:
    """What a client wants its proxy server to dial, with an address that may be dialled. UsageError."""
    if not 32 <= len(offered.session) <= 64:
        raise UsageError("dial_back: the secret of the session has 32 to 64 bytes")
    if not peer:
        return DialBackTo(session=offered.session)
    address = target_for(offered.address, peer)
    if len(offered.certificate) > MAX_CERTIFICATE:
        raise UsageError("dial_back: the certificate is too large")
    if address.startswith("unix:"):
        return DialBackTo(address=address, session=offered.session)
    try:
        x509.load_pem_x509_certificate(offered.certificate)
    except ValueError:
        raise UsageError("dial_back: over a network there must be a certificate, in PEM") from None
    return DialBackTo(address=address, session=offered.session, certificate=offered.certificate)
