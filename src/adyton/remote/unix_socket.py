"""Unix sockets that a server of ours listens at: gRPC would take their name from whoever has it, and leave it behind."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from adyton.errors import UsageError
from adyton.remote.address import SOCKET_PATH

NO_WAY = "is its folder there, and may you write it?"  # why nobody can listen at a path


def check_free(listen: str) -> None:
    """UsageError if somebody listens at that unix socket, or nobody can. Other addresses are not looked at."""
    if not listen.startswith("unix:"):
        return
    if len(os.fsencode(listen[5:])) > SOCKET_PATH:
        raise UsageError(f"cannot listen at {listen}: a unix socket's path has at most {SOCKET_PATH} bytes")
    if not os.access(os.path.dirname(listen[5:]) or ".", os.W_OK | os.X_OK):
        raise UsageError(f"cannot listen at {listen}: {NO_WAY}")
    with contextlib.suppress(OSError):  # what is wrong then, listening says
        if not stat.S_ISSOCK(os.lstat(listen[5:]).st_mode):
            raise UsageError(f"cannot listen at {listen}: there is something of that name, and it is no socket")
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.connect(listen[5:])
        raise UsageError(f"cannot listen at {listen}: a process listens there already")


def remove_socket(listen: str) -> None:
    """Remove what listening has left behind."""
    if listen.startswith("unix:"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(listen[5:])
