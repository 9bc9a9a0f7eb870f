"""The exit log: a line for each host call that an enclave made, with its name, outcome and time. Never contents, paths or arguments.

It goes to the logger "adyton.exits" at level INFO, and to standard error as long as nobody has set logging up.

    demo_enclave: open ok 0.113 ms
    demo_enclave: stat ENOENT 0.052 ms
    demo_enclave: call lookup() denied 0.007 ms
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from typing import Protocol

import msgspec

LOGGER = "adyton.exits"


class HostCallLog(Protocol):
    """Who is told of each host call."""

    def note(self, name: str, outcome: str, started: float, size: int) -> None:
        """A host call has ended, executed by the calling thread.

        `outcome`: "ok", "denied", an errno's name, or what it raised; `started`: by time.monotonic; `size`: bytes of data that it carried.
        """


def size_of(part: object) -> int:
    """Bytes of files, arguments or values in a request or an answer, or in a part of one."""
    if isinstance(part, bytes):
        return len(part)
    if isinstance(part, msgspec.Struct):
        part = msgspec.structs.astuple(part)
    return sum(map(size_of, part)) if isinstance(part, list | tuple) else 0


class _ToStandardError(logging.Handler):
    """Says what no other handler would say."""

    def emit(self, record: logging.LogRecord) -> None:
        logger: logging.Logger | None = logging.getLogger(LOGGER)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return
            logger = logger.parent if logger.propagate else None
        with suppress(OSError, ValueError, AttributeError):  # standard error is closed
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


_HANDLER = _ToStandardError()


class ExitLog:
    """Of one enclave. Thread-safe."""

    def __init__(self, enclave: str) -> None:
        self._enclave = enclave
        self._logger = logging.getLogger(LOGGER)
        self._logger.addHandler(_HANDLER)  # once, however often it is asked for
        if self._logger.level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)

    def note(self, name: str, outcome: str, started: float, size: int) -> None:  # noqa: ARG002
        """See HostCallLog."""
        milliseconds = (time.monotonic() - started) * 1000
        self._logger.info("%s: %s %s %.3f ms", self._enclave, name, outcome, milliseconds)
