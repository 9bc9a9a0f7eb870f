"""What /proc/PID/stat and /proc/PID/status say, as messages. Bytes in, messages out, no file is opened here.

Source: proc_pid_stat(5), proc_pid_status(5); fs/proc/array.c for the escapes. Whatever the bytes are, nothing but ValueError leaves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from adyton.processes_pb2 import ProcIds, ProcStat, ProcStatus

MAX_FILE = 1 << 20  # bytes of one file; the longest line is that of 65,536 groups
STAT_FIELDS = 52  # a newer kernel's may have more, which come after them
STATES = frozenset("RSDZTtXxKWPI")

_NUMBERS = tuple(field.name for field in ProcStat.DESCRIPTOR.fields if 4 <= field.number <= STAT_FIELDS)
_DECIMAL = re.compile(rb"-?[0-9]{1,20}")
_HEXADECIMAL = re.compile(rb"[0-9a-f]{1,16}")
_OCTAL = re.compile(rb"[0-7]{1,6}")
_ESCAPES = {rb"\n": b"\n", rb"\\": b"\\"}


def parse_stat(data: bytes) -> ProcStat:
    """Of b"PID (COMM) S PPID …". COMM may hold anything, parentheses and spaces too: the last ")" ends it. ValueError."""
    opened, closed = data.find(b" ("), data.rfind(b") ")
    if not 0 < opened < closed or len(data) > MAX_FILE:
        raise ValueError("a stat file has a name in parentheses")
    rest = data[closed + 2 :].split()
    if len(rest) < STAT_FIELDS - 2:
        raise ValueError(f"a stat file has {STAT_FIELDS} fields, not {len(rest) + 2}")
    stat = ProcStat(
        pid=_decimal(data[:opened]),
        comm=data[opened + 2 : closed].decode("utf-8", "replace"),
        state=_state(rest[0]),
        **{name: _decimal(text) for name, text in zip(_NUMBERS, rest[1:], strict=False)},
    )
    if stat.pid <= 0:
        raise ValueError(f"{stat.pid} is no process")
    return stat


def parse_status(data: bytes) -> ProcStatus:
    r"""Of lines b"KEY:\tVALUE\n"; keys that are not in the table are left out. ValueError, if one that every kernel has is missing, too."""
    if len(data) > MAX_FILE:
        raise ValueError(f"a status file has at most {MAX_FILE} bytes")
    found: dict[str, Any] = {}
    for line in data.split(b"\n"):
        key, _, value = line.partition(b":")
        row = _STATUS.get(key)
        if row is not None:
            name, parse = row
            if name in found:
                raise ValueError(f"two lines for {name}")
            found[name] = parse(value.removeprefix(b"\t"))
    missing = _ALWAYS - found.keys()
    if missing:
        raise ValueError(f"a status file without {', '.join(sorted(missing))}")
    found["sigq"], found["sigq_limit"] = found["sigq"]
    return ProcStatus(**found)


def parse_children(data: bytes) -> list[int]:
    """Of /proc/PID/task/TID/children, b"PID PID …". ValueError."""
    if len(data) > MAX_FILE:
        raise ValueError(f"a children file has at most {MAX_FILE} bytes")
    return [_decimal(text) for text in data.split()]


def _decimal(text: bytes) -> int:
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"{text[:32]!r} is no number")
    return int(text)


def _hexadecimal(text: bytes) -> int:
    if not _HEXADECIMAL.fullmatch(text):
        raise ValueError(f"{text[:32]!r} is no mask")
    return int(text, 16)


def _octal(text: bytes) -> int:
    if not _OCTAL.fullmatch(text):
        raise ValueError(f"{text[:32]!r} is no umask")
    return int(text, 8)


def _kib(text: bytes) -> int:
    if not text.endswith(b" kB"):
        raise ValueError(f"{text[:32]!r} is no size in kB")
    return _decimal(text[:-3].strip())


def _name(text: bytes) -> str:
    r"""A name in a status file: a newline is written as \n and a backslash as \\, all else as it is. (In a stat file, everything is.)"""
    return re.sub(rb"\\[n\\]", lambda found: _ESCAPES[found[0]], text).decode("utf-8", "replace")


def _state(text: bytes) -> str:
    state = text[:1].decode("ascii", "replace")
    if state not in STATES or text[1:2] not in (b"", b" "):  # "S", or in status "S (sleeping)"
        raise ValueError(f"{text[:32]!r} is no state")
    return state


def _ids(text: bytes) -> ProcIds:
    real, effective, saved, file_system = (_decimal(each) for each in text.split())
    return ProcIds(real=real, effective=effective, saved=saved, file_system=file_system)


def _numbers(text: bytes) -> list[int]:
    return [_decimal(each) for each in text.split()]


def _queue(text: bytes) -> tuple[int, int]:
    queued, slash, limit = text.partition(b"/")
    if not slash:
        raise ValueError(f"{text[:32]!r} is no count and limit of signals")
    return _decimal(queued), _decimal(limit)


def _flag(text: bytes) -> bool:
    if text not in (b"0", b"1"):
        raise ValueError(f"{text[:32]!r} is no flag")
    return text == b"1"


def _list(text: bytes) -> str:
    if not re.fullmatch(rb"[0-9,-]*", text):
        raise ValueError(f"{text[:32]!r} is no list of numbers")
    return text.decode("ascii")


_STATUS: Mapping[bytes, tuple[str, Callable[[bytes], Any]]] = {
    b"Name": ("name", _name),
    b"Umask": ("umask", _octal),
    b"State": ("state", _state),
    b"Tgid": ("tgid", _decimal),
    b"Pid": ("pid", _decimal),
    b"PPid": ("ppid", _decimal),
    b"TracerPid": ("tracer_pid", _decimal),
    b"Uid": ("uid", _ids),
    b"Gid": ("gid", _ids),
    b"FDSize": ("fd_size", _decimal),
    b"Groups": ("groups", _numbers),
    b"NSpid": ("ns_pid", _numbers),
    b"VmPeak": ("vm_peak", _kib),
    b"VmSize": ("vm_size", _kib),
    b"VmLck": ("vm_lck", _kib),
    b"VmPin": ("vm_pin", _kib),
    b"VmHWM": ("vm_hwm", _kib),
    b"VmRSS": ("vm_rss", _kib),
    b"RssAnon": ("rss_anon", _kib),
    b"RssFile": ("rss_file", _kib),
    b"RssShmem": ("rss_shmem", _kib),
    b"VmData": ("vm_data", _kib),
    b"VmStk": ("vm_stk", _kib),
    b"VmExe": ("vm_exe", _kib),
    b"VmLib": ("vm_lib", _kib),
    b"VmPTE": ("vm_pte", _kib),
    b"VmSwap": ("vm_swap", _kib),
    b"HugetlbPages": ("hugetlb_pages", _kib),
    b"Threads": ("threads", _decimal),
    b"SigQ": ("sigq", _queue),
    b"SigPnd": ("sig_pnd", _hexadecimal),
    b"ShdPnd": ("shd_pnd", _hexadecimal),
    b"SigBlk": ("sig_blk", _hexadecimal),
    b"SigIgn": ("sig_ign", _hexadecimal),
    b"SigCgt": ("sig_cgt", _hexadecimal),
    b"CapInh": ("cap_inh", _hexadecimal),
    b"CapPrm": ("cap_prm", _hexadecimal),
    b"CapEff": ("cap_eff", _hexadecimal),
    b"CapBnd": ("cap_bnd", _hexadecimal),
    b"CapAmb": ("cap_amb", _hexadecimal),
    b"NoNewPrivs": ("no_new_privs", _flag),
    b"Seccomp": ("seccomp", _decimal),
    b"Seccomp_filters": ("seccomp_filters", _decimal),
    b"Cpus_allowed_list": ("cpus_allowed_list", _list),
    b"Mems_allowed_list": ("mems_allowed_list", _list),
    b"voluntary_ctxt_switches": ("voluntary_ctxt_switches", _decimal),
    b"nonvoluntary_ctxt_switches": ("nonvoluntary_ctxt_switches", _decimal),
}
_ALWAYS = frozenset(
    name
    for name, _ in _STATUS.values()
    if not ProcStatus.DESCRIPTOR.fields_by_name[name].has_presence and name not in ("groups", "ns_pid")
) | {"uid", "gid"}
