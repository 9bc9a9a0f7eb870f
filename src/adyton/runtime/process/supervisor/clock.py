"""An enclave's realtime clock: the client's, which goes on by this machine's monotonic clock.

The client says now and then what time it is. What it says arrives late, so of all that it has said the one holds that puts the clock
furthest ahead: it was the least delayed, and no clock of an enclave ever runs backwards, whatever its client does. Until the client
has said something, and always where the image asks for that, the clock is the server's.
"""

from __future__ import annotations

import calendar
import ctypes
import mmap
import os
import struct
import time
from collections.abc import Callable

from adyton.errors import UsageError

# What can be a client's time, in ns since 1970: nothing else is taken for one.
EARLIEST = calendar.timegm((2000, 1, 1, 0, 0, 0)) * 10**9
LATEST = calendar.timegm((2200, 1, 1, 0, 0, 0)) * 10**9
TIME = struct.Struct("<q")


class Clock:
    """See the module. `file`: of which the first 8 bytes are the guest's offset (vdso.py); closed here. None: the server's clock."""

    def __init__(self, file: int | None = None, monotonic: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic = monotonic
        self._offset = 0
        self._shared: ctypes.c_int64 | None = None
        if file is not None:
            # A number of its own width is stored in one piece, so that no reader sees half of it.
            self._shared = ctypes.c_int64.from_buffer(mmap.mmap(file, mmap.PAGESIZE))
            os.close(file)

    def load(self, client_time: int) -> None:
        """Begin with the client's time in ns; 0: it says none. UsageError for what cannot be one."""
        if client_time and self._shared is not None and not self._told(client_time):
            raise UsageError(
                f"the client's clock says that {client_time // 10**9} s have passed since 1970, which cannot be: set it, or give the "
                'image time = "server"'
            )

    def tell(self, body: bytes | bytearray) -> None:
        """The client said what time it is. What cannot be is not taken, and neither is what would set the clock back."""
        if len(body) == TIME.size and self._offset:
            self._told(*TIME.unpack(body))

    def _told(self, client_time: int) -> bool:
        if not EARLIEST <= client_time < LATEST:
            return False
        self._offset = max(self._offset, client_time - self._monotonic())
        if self._shared is not None:
            self._shared.value = self._offset
        return True

    def now(self) -> int:
        """What the program would be told now, in ns since 1970."""
        return self._offset + self._monotonic() if self._offset else time.time_ns()
