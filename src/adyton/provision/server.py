"""A provision server: takes images, and has an enclave and its proxy server started for each load."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from adyton.attestation.identity import Platform
from adyton.communicator.joining import GRACE_SECONDS
from adyton.errors import PlatformError, UsageError
from adyton.provision.exposure import check_exposure
from adyton.provision.lifetime import Stop
from adyton.provision.relay_messages import Dial
from adyton.provision.relay_processes import RelaySettings
from adyton.provision.spawner import Spawned, Spawner
from adyton.provision.temporary_folder import TemporaryFolder
from adyton.provision_pb2 import Ready
from adyton.remote.address import TLS
from adyton.remote.certificates import of_server

THREADS = 256  # loads at a time
DRAIN_SECONDS = 30.0  # that enclaves may go on after SIGTERM; a second SIGTERM ends them


@dataclass(frozen=True)
class ServerOptions:
    """The options of `adyton serve`."""

    host: str = "127.0.0.1"
    port: int = 4321
    proxy_ports: tuple[int, int] | None = None
    temporary_directory: str | None = None
    tls: TLS | None = None
    token: str = ""
    insecure: bool = False
    remote_proxy: str = ""
    grace: float = GRACE_SECONDS
    platform: Platform = "sim"  # of all its enclaves
    sealed_directory: str | None = None


def serve(options: ServerOptions, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; KeyboardInterrupt after the latter. UsageError, PlatformError."""
    check_exposure(options.host, options.tls, options.token, insecure=options.insecure)
    of_server(options.tls)  # what is wrong with its files is said before anything is started
    stop = Stop()
    stop.on_signals()
    host = f"[{options.host}]" if ":" in options.host and not options.host.startswith("[") else options.host
    os.umask(0o022)  # enclaves have uids of their own, and must be able to read the blobs
    with contextlib.ExitStack() as stack:
        from adyton.provision.store import BlobStore

        directory = options.temporary_directory
        if directory is None:
            directory = stack.enter_context(TemporaryFolder("adyton-serve-")).path
            os.chmod(directory, 0o755)  # noqa: S103 - enclaves have uids of their own, and see the blobs only
        try:
            store = BlobStore(directory)
        except OSError as error:
            raise UsageError(f"images cannot be kept in {directory}: {error.strerror}; give another folder") from None
        if options.sealed_directory is not None:
            try:
                os.makedirs(options.sealed_directory, mode=0o700, exist_ok=True)
            except OSError as error:
                raise UsageError(
                    f"--sealed-directory {options.sealed_directory} cannot be made: {error.strerror}; name a folder of yours"
                ) from None
        tls = options.tls
        files = [path for path in (tls.cert, tls.key, tls.ca) if path is not None] if tls else []
        settings = RelaySettings(host, options.proxy_ports or (0, 0), files, options.remote_proxy, options.grace)
        spawner = stack.enter_context(contextlib.closing(Spawner(directory, settings, on_end=lambda: stop.set(b"e"))))

        from adyton.provision.service import Order, ProvisionService, only  # imports grpc, so only now
        from adyton.remote.connection import UPLOAD_WINDOW, open_server

        def start(order: Order) -> Ready:
            to = order.dial_back
            dial = Dial(to.address, to.session, to.certificate) if to is not None else None
            sealed = order.sealed_folder(options.sealed_directory)
            return ready(spawner.spawn(order.measurement, order.signatures, order.platform, order.wanted, dial, sealed))

        def ready(spawned: Spawned) -> Ready:
            return Ready(
                enclave_id=spawned.enclave, port=spawned.port, session=spawned.session, grace=int(options.grace * 1000)
            )

        def find(enclave: str) -> Ready | None:
            found = spawner.find(enclave)
            return None if found is None else ready(found)

        service = ProvisionService(store, start, options.token, choose=only(options.platform), find=find)
        server, port = open_server([service.handler()], f"{host}:{options.port}", tls, THREADS, UPLOAD_WINDOW)
        server.start()
        announce(f"{host}:{port}")
        stop.wait()
        server.stop(1 if spawner.ended else None).wait(5)  # who waits is told
        if spawner.ended:
            raise PlatformError(
                "the part of the server that starts enclaves has ended, and they with it: start it again"
            )

        def drain() -> None:
            spawner.drain(DRAIN_SECONDS)
            stop.set()

        threading.Thread(target=drain, name="adyton-drain", daemon=True).start()
        stop.wait()
    if stop.interrupted:
        raise KeyboardInterrupt
