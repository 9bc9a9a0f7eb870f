"""Whoever sits between client and supervisor — network, relay, provision server — holds no plaintext of calls, results or files."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from command import start

import adyton

pytestmark = pytest.mark.sandbox


class Wiretap:
    """A TCP proxy that keeps every byte of both directions."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.seen = bytearray()
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def _run(self, target, *arguments) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                self._run(self._copy, near, far)
                self._run(self._copy, far, near)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.seen += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)


@contextmanager
def tapped_proxy() -> Iterator[Wiretap]:
    """A proxy server behind a wiretap; image, evidence, calls and files all pass through it."""
    process = start("proxy", "--listen", "127.0.0.1:0")
    assert process.stdout is not None
    port = int(process.stdout.readline().rpartition(":")[2])
    tap = Wiretap(("127.0.0.1", port))
    try:
        yield tap
    finally:
        tap.close()
        process.terminate()
        assert process.wait(40) == 0
        process.stdout.close()


def test_a_wiretap_sees_the_image_and_no_message(workplace):
    Path("secrets_program.py").write_text(
        "def shout(text: str, path: str) -> str:\n    print(text[::-1])\n    return text.upper() + open(path).read()\n"
    )
    Path("secret.txt").write_text("content-of-a-secret-file")
    with tapped_proxy() as tap:
        with adyton.load(
            "secrets_program.py", on=f"grpc://127.0.0.1:{tap.port}", allow_sim=True, allow_read=["secret.txt"]
        ) as client:
            assert (
                client.call("shout", "an-argument-in-confidence", "secret.txt")
                == "AN-ARGUMENT-IN-CONFIDENCEcontent-of-a-secret-file"
            )
        seen = bytes(tap.seen)
    assert b"def shout" in seen  # the image is public, and the tap does see what is not sealed
    for secret in (
        b"an-argument",
        b"AN-ARGUMENT",
        b"tnemugra-na",
        b"content-of-a-secret",
        b"secret.txt",
        str(workplace).encode(),
    ):
        assert secret not in seen
    assert b"adyton_evidence" not in seen
