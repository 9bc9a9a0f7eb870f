"""sync and syncfs, emulated: what the enclave has done to the client's files is durable there; what other programs of the server wrote is not its business.

Pages of a mapping that no program has had written out are the kernel's: syncfs hands them on, as the last thing that it does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from typing import Any

from adyton.hostcall import abi
from adyton.runtime.process.supervisor.fetching import NotSocketError
from adyton.runtime.process.supervisor.files import Effect, FileServer
from adyton.runtime.process.supervisor.notifications import GoneError, Listener, Note
from adyton.runtime.process.supervisor.view import ask


class SyncCalls:
    """See the module. `do` carries out what the file server wants."""

    def __init__(self, files: FileServer, do: Callable[[list[Effect]], None]) -> None:
        self._files = files
        self._do = do

    def handlers(self, listener: Listener) -> Mapping[str, Callable[[Note], None]]:
        """Who emulates the calls that `listener` tells of."""
        return {"sync": lambda note: self._sync(listener, note), "syncfs": lambda note: self._sync_one(listener, note)}

    def _sync(self, listener: Listener, note: Note) -> None:
        """sync(2), which never fails."""
        self._begin(lambda _error: listener.answer(note))

    def _sync_one(self, listener: Listener, note: Note) -> None:
        """syncfs(2), of whatever file: what is not the client's is in memory only."""
        try:
            os.close(listener.fetch(note, note.argument(0)))
        except NotSocketError:
            pass
        except OSError as error:
            listener.answer(note, error=error.errno or errno.EBADF)
            return
        self._begin(lambda error: listener.answer(note, error=error) if error else listener.go_on(note))

    def _begin(self, answer: Callable[[int], None]) -> None:
        def done(_: object, error: int) -> None:
            with suppress(GoneError):
                answer(error)

        self._do(self._files.begin(steps(), done))


def steps() -> Generator[Any, abi.Result, None]:
    """What the file server is to carry out."""
    yield from ask(abi.SyncAll(), abi.Done)
