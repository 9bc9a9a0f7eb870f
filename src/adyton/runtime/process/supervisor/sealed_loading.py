"""A load's sealed files: opened before the program is, at the place that the client or this server has for them.

container on        the platform has no key for them      remembered by
the client's disk   the load fails: it asked for them     this server, where it has a folder for that
the server's disk   there are none, and who looks hears   the client, if it keeps notes
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from adyton.attestation.sealing.header import To
from adyton.attestation.sealing.keys import Sealing
from adyton.communicator.messages import LoadRequest, RaisedKind
from adyton.communicator.session import Session
from adyton.errors import PlatformError, UsageError
from adyton.hostcall import abi
from adyton.runtime.process.supervisor.disk_thread import DiskThread
from adyton.runtime.process.supervisor.file_requests import FileRequests
from adyton.runtime.process.supervisor.loop import Callback, Loop
from adyton.runtime.process.supervisor.sealed_place import SealedPlace
from adyton.runtime.process.supervisor.sealed_storage import FileKeys, at_once

CAPACITY = 1 << 32  # bytes of sealed files, as ciphertext
_INSTEAD = "Load it without sealed files, and keep what is to outlive it encrypted under a key that a broker releases to it (`adyton broker`, `trusted.secret`: docs/broker.md)"


@dataclass(frozen=True, slots=True)
class SealedSettings:
    """What there is for one enclave's sealed files before its client has come.

    `thread`: for what waits for this server's disk; None: it is waited for. `sealing`: None: no keys. `to`, `demands`: of its manifest, whom they belong to, and that somebody must remember them. `container`, `memory`: descriptors of
    files on this server's disk, see `runtime.process.sealed_container`.
    """

    sealing: Sealing | None = None
    to: To = "measurement"
    demands: bool = False
    container: int | None = None
    memory: int | None = None
    thread: DiskThread | None = None


class SealedLoading:
    """See the module."""

    def __init__(self, requests: FileRequests | None, session: Session, settings: SealedSettings) -> None:
        self._requests = requests
        self._session = session
        self._settings = settings

    def begin(self, loop: Loop, guarded: Callable[[Callback], Callback]) -> None:
        """Go on, from now on, with what has waited for this server's disk."""
        requests, thread = self._requests, self._settings.thread
        if requests is not None and thread is not None:
            thread.attach(loop, guarded(lambda: requests.do(requests.files.flush())))

    def open(self, request: LoadRequest, then: Callable[[], None], refuse: Callable[[str, RaisedKind], None]) -> None:
        """Go on with `then` when they are open, or there are none; what is wrong with them ends the load."""
        settings = self._settings
        container = request.sealed or settings.container
        if self._requests is None:
            if request.sealed:
                refuse("sealed files are not to be had on this platform: leave out --sealed", "state")
            else:
                then()
            return
        if container is None or settings.sealing is None:
            self._requests.files.no_sealed(self._say)
            then()
            return
        keys = FileKeys(settings.sealing, settings.to)
        try:
            keys.check()
        except UsageError as error:
            refuse(f"there can be no sealed files: {error.message}", "usage")
            return
        except PlatformError as error:
            if request.sealed:
                refuse(f"{error.message}. {_INSTEAD}", "platform")
            else:
                self._requests.files.no_sealed(self._say, f"{error.message}; so there is no /sealed. {_INSTEAD}")
                then()
            return
        remembers: int | abi.Owned | None = (
            settings.memory if request.sealed else settings.to if request.remembers else None
        )
        demands = settings.demands or request.demands_memory
        do = at_once if settings.thread is None else settings.thread.do
        self._open(SealedPlace(keys, CAPACITY, container, remembers, demands, do), then, refuse)

    def _open(self, place: SealedPlace, then: Callable[[], None], refuse: Callable[[str, RaisedKind], None]) -> None:
        assert self._requests is not None
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            self._say(text)

        def opened(number: int) -> None:
            if number:
                message = said[-1] if said else f"the sealed files cannot be opened: {os.strerror(number)}"
                refuse(message, "sealed" if number == errno.EIO else "state")
            else:
                then()

        self._requests.do(self._requests.files.open_sealed(place, say, opened))

    def _say(self, text: str) -> None:
        """On the client's standard error."""
        line = f"adyton: {text}\n".encode()
        self._session.notify("output", msgspec.msgpack.encode(abi.Output("stderr", line)))
