"""docs/syscalls.md: the table of system calls for readers."""

from __future__ import annotations

from adyton.runtime.process.table import GROUPS, ROWS
from adyton.runtime.process.table_rows import Check, Group, Only, Row

_GROUPS: dict[Group, str] = {
    "file": "Files",
    "event": "Waiting for events",
    "net": "Sockets",
    "memory": "Memory",
    "process": "Processes and threads",
    "signal": "Signals",
    "time": "Time",
    "ipc": "Communication between processes",
    "mount": "Mounts and namespaces",
    "system": "The system",
}

_HEAD = """\
# System calls

What becomes of each system call of a program in an enclave of the `process` runtime, with its numbers on x86-64 and arm64. This page is
made from the table that the filter is made from (`make docs`); `adyton syscalls --json` has the same for programs.

- *local*: the guest's kernel does it, within the guest's own namespaces and file tree. What it does to files of the client is done on the
  client, under its policy.
- *emulated*: the supervisor does it, with the client where that is needed.
- *refused*: it fails with the errno, and does nothing. Where a condition is given, the call is local or emulated unless the condition refuses it;
  it looks at an argument's low 32 bits (arguments count from 0).

A number that is not here fails with ENOSYS, as on an older kernel, and so does every x32 call. A 32-bit call (`int 0x80`) ends the process with
SIGSYS.
"""


def markdown() -> str:
    """The page."""
    counts = {action: sum(row.action == action for row in ROWS) for action in ("local", "emulated", "refused")}
    said = ", ".join(f"{count} {action}" for action, count in counts.items() if count)
    parts = [_HEAD, f"{len(ROWS)} calls: {said}.\n"]
    for group in GROUPS:
        parts.append(f"## {_GROUPS[group]}\n")
        lines = ["| call | x86-64 | arm64 | becomes | because |", "|---|---|---|---|---|"]
        lines += [_line(row) for row in ROWS if row.group == group]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(row: Row) -> str:
    numbers = " | ".join("-" if each is None else str(each) for each in (row.x86_64, row.aarch64))
    if row.refused:
        return f"| `{row.name}` | {numbers} | refused: {row.refused.errno} | {row.refused.reason} |"
    notes = [each for each in (row.emulated.how if row.emulated else "", row.note) if each]
    because = "; ".join([*notes, *map(condition, row.checks)])
    return f"| `{row.name}` | {numbers} | {row.action} | {because} |"


def condition(check: Check) -> str:
    """A check in words: the errno, when it comes, and why."""
    listed = ", ".join(_spelt(value) for value in check.values)
    if not isinstance(check, Only):
        when = f"is {listed}" if len(check.values) == 1 else f"is one of {listed}"
    elif check.mask != 0xFFFFFFFF:
        when = f"has bits of {check.mask:#x}" if check.values == (0,) else f"under {check.mask:#x} is not {listed}"
    else:
        when = f"is not {listed}" if len(check.values) == 1 else f"is none of {listed}"
    return f"{check.otherwise.errno} where argument {check.argument} {when}: {check.otherwise.reason}"


def _spelt(value: int) -> str:
    return str(value) if value < 4096 else f"{value:#x}"
