"""A load's sealed files: opened before the program is, at the place that the client or this server has for them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import msgspec

from adyton.attestation.sealing.keys import Sealing
from adyton.communicator.messages import RaisedKind
from adyton.communicator.session import Session
from adyton.hostcall import abi
from adyton.runtime.process.supervisor.file_requests import FileRequests
from adyton.runtime.process.supervisor.sealed_storage import FileKeys

CAPACITY = 1 << 32  # bytes of sealed files, as ciphertext


class SealedLoading:
    """See the module. `container`: a descriptor of one on this server's disk, where it has one for this enclave."""

    def __init__(
        self, requests: FileRequests | None, session: Session, sealing: Sealing | None, container: int | None
    ) -> None:
        self._requests = requests
        self._session = session
        self._keys = None if sealing is None else FileKeys(sealing)
        self._container = container

    def open(self, path: str, then: Callable[[], None], refuse: Callable[[str, RaisedKind], None]) -> None:
        """Go on with `then` when they are open, or there are none; what is wrong with them ends the load. `path`: the client's place for them, or ""."""
        if self._requests is None:
            if path:
                refuse("sealed files are not to be had on this platform: leave out --sealed", "state")
            else:
                then()
            return
        where = path or self._container
        if where is None or self._keys is None:
            self._requests.files.no_sealed(self._say)
            then()
            return
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

        self._requests.do(self._requests.files.open_sealed(self._keys, CAPACITY, where, say, opened))

    def _say(self, text: str) -> None:
        """On the client's standard error."""
        line = f"adyton: {text}\n".encode()
        self._session.notify("output", msgspec.msgpack.encode(abi.Output("stderr", line)))
