"""Unpacked layers of a zygote: each is unpacked once, for all enclaves whose image has it, and shown to them read-only.

    supervisor ── WANTED ──► zygote: LayerStore ── starts an unpacker, unless the layer is there
               ◄── READY + folder, or FAILED ──

They lie in memory, in the zygote's file tree, in folders named by digest; guests see clones that they cannot write to. What no
running enclave uses goes when there is no room for another layer, least recently used first.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import shutil
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from adyton import errors
from adyton.crypto.digest import is_digest
from adyton.errors import AdytonError, ImageError, PlatformError, ResourceLimitError
from adyton.runtime.process.unpacker import FAILED, UNPACKED

READY = b"ready:"  # then the folder
MESSAGE_SIZE = 1 << 12
GROWTH = 2  # times a layer's size that it may need: bytecode is mostly shorter than its source, and blocks are larger than short files

Unpack = Callable[
    [str, int, str], tuple[int, int]
]  # digest, size, folder → an unpacker's pid and the pipe on which it tells


WANTED = struct.Struct("<71sQ")  # digest and size in bytes


@dataclass
class _Layer:
    size: int
    pipe: int
    unpacked: bool = False
    users: set[int] = field(default_factory=set)  # supervisors' pids, those that wait included
    waiting: list[socket.socket] = field(default_factory=list)
    used: int = 0  # the larger, the later


class LayerStore:
    """The zygote's end. `directory`: on a file system of at least `limit` bytes. Never blocks for long."""

    def __init__(self, directory: str, limit: int, unpack: Unpack, poller: select.poll) -> None:
        self.unpackers: set[int] = set()  # pids that have not been `ended`
        self._directory = directory
        self._limit = limit
        self._unpack = unpack
        self._poller = poller
        self._clock = itertools.count(1)
        self._layers: dict[str, _Layer] = {}
        self._askers: dict[int, tuple[int, socket.socket]] = {}  # by descriptor
        self._pipes: dict[int, str] = {}

    def join(self, pid: int, sock: socket.socket) -> None:
        """A supervisor that may ask on `sock`, which is ours now."""
        self._askers[sock.fileno()] = pid, sock
        self._poller.register(sock, select.POLLIN)

    def ready(self, descriptor: int) -> bool:
        """Take what the poller says can be read; False: it is none of ours."""
        if descriptor in self._askers:
            self._asked(*self._askers[descriptor])
        elif descriptor in self._pipes:
            self._told(descriptor)
        else:
            return False
        return True

    def ended(self, pid: int) -> None:
        """A child of the zygote has ended: what it asked last is no matter."""
        self.unpackers.discard(pid)
        for asker, sock in list(self._askers.values()):
            if asker == pid:
                self._leave(sock)
        for layer in self._layers.values():
            layer.users.discard(pid)

    def abandon(self) -> None:
        """In a child of the zygote: close what is not the child's."""
        for _, sock in self._askers.values():
            sock.close()
        for pipe in self._pipes:
            os.close(pipe)

    def _asked(self, pid: int, sock: socket.socket) -> None:
        try:
            message = sock.recv(MESSAGE_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:  # the event was of a socket that had this number before
            return
        except OSError:
            message = b""
        if not message:  # it wants no more
            self._leave(sock)
            return
        try:
            name, size = WANTED.unpack(message)
            digest = name.decode("ascii", "replace")
            layer = self._layer(digest, size)
        except (AdytonError, struct.error, OSError) as error:
            self._answer(sock, failure(error))
            return
        layer.users.add(pid)
        layer.used = next(self._clock)
        if layer.unpacked:
            self._answer(sock, READY + self._folder(digest).encode())
        else:
            layer.waiting.append(sock)

    def _layer(self, digest: str, size: int) -> _Layer:
        """The layer, which is being unpacked if it was not there. ImageError, ResourceLimitError, OSError."""
        if not is_digest(digest):
            raise ImageError(f"{digest[:80]!r} is no layer")
        layer = self._layers.get(digest)
        if layer is None:
            self._make_room(size)
            folder = self._folder(digest)
            os.mkdir(folder, 0o755)
            try:
                pid, pipe = self._unpack(digest, size, folder)
            except OSError:
                os.rmdir(folder)
                raise
            os.set_blocking(pipe, False)
            layer = self._layers[digest] = _Layer(size, pipe)
            self.unpackers.add(pid)
            self._pipes[pipe] = digest
            self._poller.register(pipe, select.POLLIN)
        if layer.size != size:
            raise ImageError(f"the layer {digest} is {layer.size} bytes long, not {size} as the image says")
        return layer

    def _make_room(self, size: int) -> None:
        used = sum(layer.size for layer in self._layers.values())
        unused = [digest for digest, layer in self._layers.items() if layer.unpacked and not layer.users]
        for digest in sorted(unused, key=lambda digest: self._layers[digest].used):
            if (used + size) * GROWTH <= self._limit:
                break
            used -= self._layers[digest].size
            self._remove(digest)
        if (used + size) * GROWTH > self._limit:
            raise ResourceLimitError(
                f"the server has no memory for a layer of {size} bytes: its enclaves use {used} of {self._limit // GROWTH}."
                " Try again when some have ended"
            )

    def _told(self, pipe: int) -> None:
        digest = self._pipes[pipe]
        layer = self._layers[digest]
        try:
            message = os.read(pipe, MESSAGE_SIZE)
        except BlockingIOError:  # the event was of a pipe that had this number before
            return
        if message.startswith(UNPACKED):
            layer.unpacked = True
            self._tell(layer, READY + self._folder(digest).encode())
            return
        self._close(layer)
        if not layer.unpacked:
            self._tell(
                layer, message or failure(PlatformError(f"the process that unpacked the layer {digest} was ended"))
            )
            self._remove(digest)

    def _tell(self, layer: _Layer, message: bytes) -> None:
        for sock in layer.waiting:
            self._answer(sock, message)
        layer.waiting.clear()

    def _answer(self, sock: socket.socket, message: bytes) -> None:
        with contextlib.suppress(OSError):  # the supervisor was killed; its end is seen, too
            sock.send(message, socket.MSG_DONTWAIT)

    def _leave(self, sock: socket.socket) -> None:
        self._poller.unregister(sock)
        del self._askers[sock.fileno()]
        for layer in self._layers.values():
            if sock in layer.waiting:
                layer.waiting.remove(sock)
        sock.close()

    def _close(self, layer: _Layer) -> None:
        if layer.pipe >= 0:
            self._poller.unregister(layer.pipe)
            del self._pipes[layer.pipe]
            os.close(layer.pipe)
            layer.pipe = -1

    def _remove(self, digest: str) -> None:
        """An unpacker that still compiles there finds nothing more, and ends."""
        self._close(self._layers.pop(digest))
        shutil.rmtree(self._folder(digest), ignore_errors=True)

    def _folder(self, digest: str) -> str:
        return f"{self._directory}/{digest[7:]}"


def failure(error: BaseException) -> bytes:
    """FAILED with what the supervisor is to raise."""
    kind = type(error).__name__ if isinstance(error, AdytonError) else "PlatformError"
    return FAILED + f"{kind}\n{error}".encode()[: MESSAGE_SIZE - 16]


class LayerClient:
    """A supervisor's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def unpacked(self, digest: str, size: int) -> str:
        """The folder with the verified layer, which stays while this process lives. AdytonError says why there is none."""
        try:
            self._socket.send(WANTED.pack(digest.encode(), size))
            message = self._socket.recv(MESSAGE_SIZE)
        except OSError as error:
            raise PlatformError(f"the zygote unpacks no layers: {error}") from error
        if message.startswith(READY):
            return message[len(READY) :].decode()
        name, _, text = message[len(FAILED) :].decode("utf-8", "replace").partition("\n")
        kind = getattr(errors, name, PlatformError)
        raise kind(text) if isinstance(kind, type) and issubclass(kind, AdytonError) else PlatformError(text)

    def close(self) -> None:
        """No more is wanted."""
        self._socket.close()


_client: LayerClient | None = None


def connect(sock: socket.socket) -> None:
    """Let this process, a new supervisor, ask on `sock`."""
    global _client  # noqa: PLW0603 - as there is one zygote
    _client = LayerClient(sock)


def client() -> LayerClient:
    """What `connect` made."""
    assert _client is not None
    return _client
