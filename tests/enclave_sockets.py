"""A program in an enclave that does what a test says, and peers for it on the client's machine."""

from __future__ import annotations

import socket
import textwrap
import threading
from contextlib import contextmanager, suppress

import adyton

PATIENCE = 60.0  # seconds until a test gives up on something that takes milliseconds

PROGRAM = '''
import asyncio, errno, os, select, selectors, signal, socket, struct, sys, threading, time

def execute(code: str) -> object:
    """What the code leaves as `result`."""
    scope = dict(globals())
    exec(code, scope)
    return scope.get("result")

def attempt(code: str) -> str:
    """The name of the errno that the code fails with; "" if it does not."""
    try:
        exec(code, dict(globals()))
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error)) if error.errno else repr(error)
    return ""
'''

EVERYWHERE = {
    "allow_net": ["127.0.0.1", "[::1]", "localhost"],
    "allow_listen": ["127.0.0.1:0", "[::1]:0"],
}


class Enclave:
    """What a test does with it: `run` gives `result` of the code, `fails` an errno's name; `start` runs code in the background."""

    def __init__(self, client):
        self.client = client

    def run(self, code, **values):
        return self.client.call("execute", _code(code, values))

    def fails(self, code, **values):
        return self.client.call("attempt", _code(code, values))

    def start(self, code, **values):
        return self.client.submit("execute", _code(code, values))


def _code(code, values):
    assignments = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    return assignments + textwrap.dedent(code)


@contextmanager
def enclave(directory, **lists):
    path = directory / "sockets.py"
    path.write_text(PROGRAM)
    with adyton.load(str(path), **lists) as client:
        yield Enclave(client)


@contextmanager
def server(serve, family=socket.AF_INET):
    """A listening socket; `serve` is called with each connection, in a thread of its own. Gives the port."""
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    listener = socket.create_server((host, 0), family=family)
    connections = []

    def handle(connection):
        with connection, suppress(OSError):
            serve(connection)

    def accept():
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(PATIENCE)
                connections.append(connection)
                thread = threading.Thread(target=handle, args=(connection,), daemon=True)
                thread.start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for each in connections:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def echo(connection):
    while data := connection.recv(1 << 16):
        connection.sendall(data)
