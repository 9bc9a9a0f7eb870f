"""Where the relay's connections come into the enclave: by loopback, and each with a name that was told before, see adyton.handing_over.

    control ── names ──►┐
                        ├─► both are there ──► handed to the supervisor
    listener ── each connection's first bytes ──►┘

Whoever else is on the machine can dial, too, and gets no further than here.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections import deque

from adyton.handing_over import NAME_SIZE, hand_over

_MOST = 64  # names without their connections, and connections without their names: of more, the oldest goes


class Admission:
    """Which connections are let in, sans-IO. A connection is any object."""

    def __init__(self) -> None:
        self._told = b""  # of a name that is not complete
        self._names: deque[bytes] = deque(maxlen=_MOST)
        self._waiting: dict[bytes, object] = {}  # what began with a name that has not been told

    def told(self, data: bytes) -> list[object]:
        """What came on the control socket; the connections that are let in now."""
        told = self._told + data
        whole = len(told) - len(told) % NAME_SIZE
        self._told = told[whole:]
        admitted = []
        for at in range(0, whole, NAME_SIZE):
            name = told[at : at + NAME_SIZE]
            if name in self._waiting:
                admitted.append(self._waiting.pop(name))
            else:
                self._names.append(name)
        return admitted

    def began(self, connection: object, name: bytes) -> tuple[bool, object | None]:
        """Whether that connection is let in now; and one that is to be closed. Names are random, and used once."""
        if name in self._names:
            self._names.remove(name)
            return True, None
        dropped = self._waiting.pop(name, None)
        if dropped is None and len(self._waiting) >= _MOST:
            dropped = self._waiting.pop(next(iter(self._waiting)))
        self._waiting[name] = connection
        return False, dropped

    def left(self) -> list[object]:
        """Those that have not been let in, and are not going to be."""
        return list(self._waiting.values())


class Door:
    """Owns the three sockets. `supervisor`: where connections are handed over; its end is the enclave's."""

    def __init__(self, listener: socket.socket, control: socket.socket, supervisor: socket.socket) -> None:
        self._listener = listener
        self._control = control
        self._supervisor = supervisor
        self._admission = Admission()
        self._silent: dict[int, socket.socket] = {}  # those that have not given a name, by descriptor

    def run(self) -> None:
        """Until the control socket ends."""
        with self._listener, self._control, self._supervisor, contextlib.ExitStack() as others:
            others.callback(self._close_others)
            poller = select.poll()
            poller.register(self._listener, select.POLLIN)
            poller.register(self._control, select.POLLIN)
            while True:
                for descriptor, _ in poller.poll():
                    if descriptor == self._control.fileno():
                        if not self._told():
                            return
                    elif descriptor == self._listener.fileno():
                        self._came(poller)
                    elif descriptor in self._silent:
                        poller.unregister(descriptor)
                        self._said(self._silent.pop(descriptor))

    def _close_others(self) -> None:
        for each in (*self._silent.values(), *self._admission.left()):
            assert isinstance(each, socket.socket)
            each.close()

    def _told(self) -> bool:
        try:
            data = self._control.recv(64 * NAME_SIZE)
        except OSError:
            data = b""
        for each in self._admission.told(data):
            self._let_in(each)
        return bool(data)

    def _came(self, poller: select.poll) -> None:
        with contextlib.suppress(OSError):  # it is gone already
            sock, _ = self._listener.accept()
            if len(self._silent) >= _MOST:
                oldest = next(iter(self._silent))
                poller.unregister(oldest)
                self._silent.pop(oldest).close()
            self._silent[sock.fileno()] = sock
            poller.register(sock, select.POLLIN)

    def _said(self, sock: socket.socket) -> None:
        """A name comes in one piece, or is none."""
        name = b""
        with contextlib.suppress(OSError):
            name = sock.recv(NAME_SIZE, socket.MSG_DONTWAIT)
        if len(name) < NAME_SIZE:
            sock.close()
            return
        admitted, dropped = self._admission.began(sock, name)
        if isinstance(dropped, socket.socket):
            dropped.close()
        if admitted:
            self._let_in(sock)

    def _let_in(self, sock: object) -> None:
        assert isinstance(sock, socket.socket)
        with sock, contextlib.suppress(OSError):  # the supervisor is gone, and so will we be
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            hand_over(self._supervisor, sock)
