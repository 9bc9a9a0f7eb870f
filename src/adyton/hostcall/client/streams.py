"""What stands behind an enclave's standard streams on its client's machine.

    descriptor        input                                 output and error
    negative          none: the enclave's is at its end     dropped
    1 or 2            as any other                          sys.stdout and sys.stderr, whatever stands for them when it is written
    any other         read when the enclave asks            written; waits for whoever reads a pipe

Descriptors are duplicated at load, so that they stay what they were whatever the application does with its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import threading
from contextlib import suppress

from adyton.errors import UsageError
from adyton.hostcall import abi


def _own(descriptor: int, field: str, *, writes: bool) -> int:
    """A duplicate; UsageError unless it can be used as the field says."""
    try:
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    except (OSError, OverflowError, ValueError):
        raise UsageError(
            f"{field}: {descriptor} is no open descriptor of this process; open a file or a pipe and give its fileno(), or -1 for none"
        ) from None
    if access == (os.O_RDONLY if writes else os.O_WRONLY):
        raise UsageError(f"{field}: descriptor {descriptor} is not open for {'writing' if writes else 'reading'}")
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)


class StandardInput:
    """Read by one thread at a time, any number may ask. `interrupt` ends all reading for good, `close` lets go of the descriptor."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor`: of a file, pipe or terminal that is open for reading; UsageError for another."""
        self._lock = threading.Lock()
        self._descriptor = _own(descriptor, "stdin_fd", writes=False)
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC)

    def read(self, size: int) -> bytes:
        """At least one byte, as soon as there are some, and at most `size`; b"" at the end. EIO once it was interrupted."""
        with self._lock:
            poller = select.poll()
            poller.register(self._descriptor, select.POLLIN)
            poller.register(self._woken, select.POLLIN)
            while True:
                if any(descriptor == self._woken for descriptor, _ in poller.poll()):
                    raise OSError(errno.EIO, "the enclave is gone")
                with suppress(BlockingIOError):  # somebody else who has the file took it
                    return os.read(self._descriptor, size)

    def interrupt(self) -> None:
        """Have those who read fail with EIO, now and from now on."""
        wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)  # the other end of the pipe is at its end, which wakes whoever polls it

    def close(self) -> None:
        """After `interrupt`, when nobody reads any more. Idempotent."""
        self.interrupt()
        with self._lock:
            for descriptor in (self._descriptor, self._woken):
                if descriptor >= 0:
                    os.close(descriptor)
            self._descriptor = self._woken = -1


class StandardOutput:
    """What an enclave writes to its standard output and error; `close` lets go of the descriptors."""

    def __init__(self, stdout: int = 1, stderr: int = 2) -> None:
        """UsageError for a descriptor that is not open for writing."""
        self._lock = threading.Lock()
        self._process = {"stdout": stdout, "stderr": stderr}
        self._own: dict[str, int] = {}
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC)
        try:
            for name, descriptor in self._process.items():
                if descriptor >= 0 and descriptor not in (1, 2):
                    self._own[name] = _own(descriptor, f"{name}_fd", writes=True)
        except UsageError:
            self.close()
            raise

    def write(self, output: abi.Output) -> None:
        """Write it all; what nobody reads any more is dropped."""
        with suppress(OSError, ValueError):  # closed by the application, or at its other end
            with self._lock:
                descriptor = self._own.get(output.stream)
                if descriptor is not None:
                    self._write_all(descriptor, output.data)
                    return
            _write_stream(self._process[output.stream], output.data)

    def close(self) -> None:
        """Idempotent; whoever waits to write gives up."""
        wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)
        with self._lock:
            for descriptor in (*self._own.values(), self._woken):
                if descriptor >= 0:
                    os.close(descriptor)
            self._own, self._woken = {}, -1
            self._process = dict.fromkeys(self._process, -1)

    def _write_all(self, descriptor: int, data: bytes) -> None:
        """In pieces that a pipe which can be written takes without waiting."""
        poller = select.poll()
        poller.register(descriptor, select.POLLOUT)
        poller.register(self._woken, select.POLLIN)
        view = memoryview(data)
        while view:
            if any(ready == self._woken for ready, _ in poller.poll()):
                return
            with suppress(BlockingIOError):  # somebody else who has the pipe filled it
                view = view[os.write(descriptor, view[: select.PIPE_BUF]) :]


def _write_stream(number: int, data: bytes) -> None:
    stream = {1: sys.stdout, 2: sys.stderr}.get(number)
    binary = getattr(stream, "buffer", None)
    if binary is not None:
        binary.write(data)
        binary.flush()
    elif stream is not None:  # replaced by one that takes text only
        stream.write(data.decode("utf-8", "replace"))
        stream.flush()
