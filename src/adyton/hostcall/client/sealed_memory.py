"""What this machine remembers of enclaves' sealed files that lie on a server's disk: for each server and owner the note that the enclave gave last (`adyton.sealed_files.memory`).

    STATE/adyton/sealed/SERVER/OWNER    the note, 72 bytes that only the enclave can make or judge

STATE is XDG_STATE_HOME, else ~/.local/state. A file is there as a whole or as it was before, and is durable before the enclave hears of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from urllib.parse import quote

from adyton.durable import make_folder
from adyton.hostcall import abi

LONGEST = 200  # characters of a folder's name


def memory_folder(server: str) -> str:
    """Of what is remembered of a server, by the address that it is loaded from; it need not be there."""
    from platformdirs import user_state_path

    name = quote(server, safe="")
    if len(name) > LONGEST:
        name = hashlib.sha256(name.encode()).hexdigest()
    return os.path.join(user_state_path("adyton"), "sealed", name)


class SealedMemory:
    """See the module. Of one server; `name`: of the file of an owner, of the enclave that has proved what it is. Thread-safe, and beside other processes."""

    def __init__(self, folder: str, name: Callable[[abi.Owned], str]) -> None:
        self._folder = folder
        self._name = name

    def recall(self, owner: abi.Owned) -> bytes:
        """The note; b"": there is none. OSError."""
        return self._read(self._path(owner))

    def remember(self, owner: abi.Owned, known: bytes, note: bytes) -> None:
        """Put it in the place of the one that the enclave knows of. OSError; ESTALE: there is another one by now."""
        make_folder(self._folder)
        path = self._path(owner)
        with self._locked() as folder:
            there = self._read(path)
            if there == note:
                return
            if there != known:
                raise OSError(errno.ESTALE, "another enclave has gone on with the sealed files")
            temporary = f"{path}.{secrets.token_hex(8)}"
            try:
                with open(temporary, "xb", opener=_private) as file:
                    file.write(note)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            os.fsync(folder)

    def _path(self, owner: abi.Owned) -> str:
        return os.path.join(self._folder, quote(self._name(owner), safe=""))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Nobody else changes what is in the folder. Its descriptor."""
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(folder)

    @staticmethod
    def _read(path: str) -> bytes:
        try:
            with open(path, "rb") as file:
                return file.read(abi.MAX_NOTE + 1)[: abi.MAX_NOTE]
        except FileNotFoundError:
            return b""


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
