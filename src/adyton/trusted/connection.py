"""How the functions of this package reach the enclave's runtime: of the calling thread, else of the process; in a process that is no enclave, not at all."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Connection(Generic[_T]):
    """See the module. Several enclaves may be on threads of one process, in tests."""

    def __init__(self) -> None:
        self._process: _T | None = None
        self._threads = threading.local()

    def connect(self, to: _T | None, *, whole_process: bool) -> None:
        """From this thread, or from every thread; None: no longer. The runtime does this."""
        if whole_process:
            self._process = to
        else:
            self._threads.to = to

    @property
    def made(self) -> _T | None:
        """None: this is no enclave."""
        return getattr(self._threads, "to", None) or self._process
