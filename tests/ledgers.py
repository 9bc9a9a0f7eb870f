"""Enclaves that note what they are told, each call in a ledger, behind a bad network."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator

from bad_network import BadNetwork
from command import start

import adyton

LEDGER = """
import threading

seen: dict[int, int] = {}
waits = threading.Event()

def note(number: int) -> int:
    seen[number] = seen.get(number, 0) + 1
    return number

def ledger() -> dict[int, int]:
    return seen

def wait() -> str:
    waits.wait()
    return "over"

def go_on() -> str:
    waits.set()
    return "told"
"""


class Server:
    """A proxy server for one enclave; its client comes through a network that counts its connections, strangers straight to `port`."""

    def __init__(self, *options: str, start: Callable[..., subprocess.Popen[str]]) -> None:
        self.process = start("proxy", "--listen", "127.0.0.1:0", *options)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2])
        self.network = BadNetwork(self.port)

    def load(self, program: str, **keywords: object) -> adyton.EnclaveClient:
        return adyton.load(program, on=f"grpc://127.0.0.1:{self.network.port}", allow_sim=True, **keywords)  # type: ignore[arg-type]

    def close(self) -> None:
        self.network.close()
        with self.process:
            self.process.kill()


@contextlib.contextmanager
def server(*options: str, start: Callable[..., subprocess.Popen[str]] = start) -> Iterator[Server]:
    """`start`: how the proxy server is started."""
    with contextlib.closing(Server(*options, start=start)) as made:
        yield made
