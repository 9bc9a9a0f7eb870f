"""A peer on the client's machine that sends back what it gets, a process of its own: `python bench/echo_server.py` prints its port, and ends
when its standard input does."""

from __future__ import annotations

import contextlib
import functools
import socket
import sys
import threading

import bare_stream

server = functools.partial(bare_stream.server, __file__)


def _serve(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        while data := sock.recv(1 << 18):
            sock.sendall(data)


def _accept(listener: socket.socket) -> None:
    while True:
        threading.Thread(target=_serve, args=(listener.accept()[0],), daemon=True).start()


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        sys.stdin.read()


if __name__ == "__main__":
    main()
