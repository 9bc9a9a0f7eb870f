"""A provision server: takes images, and has an enclave with a proxy server of its own started for each load."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass

from adyton.errors import UsageError
from adyton.provision.lifetime import Stop
from adyton.provision.spawner import Spawner
from adyton.provision_pb2 import Ready

THREADS = 16  # uploads at a time
DRAIN_SECONDS = 30.0  # that enclaves may go on after SIGTERM; a second SIGTERM ends them


@dataclass(frozen=True)
class ServerOptions:
    """The options of `adyton serve`."""

    host: str = "127.0.0.1"
    port: int = 4321
    proxy_ports: tuple[int, int] | None = None
    temporary_directory: str | None = None
    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None
    token: str = ""
    insecure: bool = False


def check_exposure(options: ServerOptions) -> None:
    """UsageError if anyone on the network could use the server."""
    from adyton.remote.address import is_loopback

    if is_loopback(options.host) or options.insecure:
        return
    if options.cert is None or (options.client_ca is None and not options.token):
        raise UsageError(
            f"serving {options.host} without TLS and client credentials would let anyone who reaches it run enclaves here: "
            "give --ssl_cert, --ssl_key and --client-ca or --token-file, or say --insecure"
        )


def serve(options: ServerOptions, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; KeyboardInterrupt after the latter. UsageError, PlatformError."""
    check_exposure(options)
    stop = Stop()
    stop.on_signals()
    host = f"[{options.host}]" if ":" in options.host and not options.host.startswith("[") else options.host
    os.umask(0o022)  # enclaves have uids of their own, and must be able to read the blobs
    with contextlib.ExitStack() as stack:
        directory = options.temporary_directory
        if directory is None:
            directory = tempfile.mkdtemp(prefix="adyton-serve-")
            os.chmod(directory, 0o755)  # noqa: S103 - enclaves have uids of their own, and see the blobs only
        from adyton.provision.store import BlobStore

        try:
            store = BlobStore(directory)
        except OSError as error:
            raise UsageError(f"images cannot be kept in {directory}: {error.strerror}; give another folder") from None
        spawner = stack.enter_context(
            contextlib.closing(Spawner(directory, temporary=options.temporary_directory is None))
        )

        from adyton.provision.service import Order, ProvisionService  # imports grpc, so only now
        from adyton.remote.address import TLS
        from adyton.remote.connection import open_server

        low, high = options.proxy_ports or (0, 0)
        listen = [f"{host}:{port}" for port in range(low, high + 1)]
        files = [path for path in (options.cert, options.key, options.client_ca) if path is not None]
        tls = TLS(ca=options.client_ca, cert=options.cert, key=options.key) if files else None

        def start(order: Order) -> Ready:
            spawned = spawner.spawn(order.measurement, order.signatures, order.platform, listen, files)
            return Ready(enclave_id=spawned.enclave, port=spawned.port, session=spawned.session)

        service = ProvisionService(store, start, options.token)
        server, port = open_server([service.handler()], f"{host}:{options.port}", tls, THREADS)
        server.start()
        announce(f"{host}:{port}")
        stop.wait()
        server.stop(None).wait(5)

        def drain() -> None:
            spawner.drain(DRAIN_SECONDS)
            stop.set()

        threading.Thread(target=drain, name="adyton-drain", daemon=True).start()
        stop.wait()
    if stop.interrupted:
        raise KeyboardInterrupt
