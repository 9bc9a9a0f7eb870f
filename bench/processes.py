"""What /proc says of processes of this machine."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

MIB = 1 << 20


def resident(pid: int) -> int:
    """Bytes that it has now."""
    return _status(pid, "VmRSS")


def peak(pid: int) -> int:
    """Most bytes that it had since `forget_peak`."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Have `peak` begin anew. PermissionError: only its user and root may."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def proportional(pid: int) -> int:
    """Bytes that it has, those that it shares divided by how many share them."""
    return _field(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss")


def processor_seconds(pid: int) -> float:
    """That all its threads have run, of those that live."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def descriptors(pid: int) -> int:
    """How many it has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    """How many it has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def descendants(pid: int) -> list[int]:
    """The processes that it started, theirs, and so on; and itself."""
    children: dict[int, list[int]] = {}
    for text in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            parent = int(Path(f"/proc/{text}/stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(text))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def available() -> int:
    """Bytes that this machine could still give."""
    return _field(Path("/proc/meminfo").read_text(), "MemAvailable")


def _status(pid: int, name: str) -> int:
    return _field(Path(f"/proc/{pid}/status").read_text(), name)


def _field(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
