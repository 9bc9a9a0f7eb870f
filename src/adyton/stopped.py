"""Noticing processes that were stopped (SIGSTOP, a debugger): they are neither gone nor will they ever answer."""

from __future__ import annotations

STOPPED_SECONDS = 3.0  # that a process may stand still before it is given up


def stopped(pid: int, *, below: bool = False) -> bool:
    """Whether the process, or with `below` a process that it started, is stopped now. False if it is gone. proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            if file.read().rpartition(")")[2].split()[0] in ("T", "t"):
                return True
        if not below:
            return False
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            children = file.read().split()
    except (OSError, IndexError):
        return False
    return any(stopped(int(child), below=True) for child in children)
