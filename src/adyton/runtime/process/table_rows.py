"""What the rows of the table of system calls are made of. See `table`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["x86_64", "aarch64"]
Errno = Literal["EACCES", "EAGAIN", "EDESTADDRREQ", "EINVAL", "ENOPROTOOPT", "ENOSYS", "EOPNOTSUPP", "EPERM"]
Group = Literal["file", "event", "net", "memory", "process", "signal", "time", "ipc", "mount", "system"]


@dataclass(frozen=True, slots=True)
class Refused:
    """Fails with `errno`, because of `reason`. `often`: libraries make the call all the time, so the filter answers it, uncounted."""

    errno: Errno
    reason: str
    often: bool = False


@dataclass(frozen=True, slots=True)
class Only:
    """The low 32 bits of an argument, under `mask`, must be one of `values`; else the call is refused."""

    argument: int  # from 0
    mask: int
    values: tuple[int, ...]
    otherwise: Refused


@dataclass(frozen=True, slots=True)
class Never:
    """The low 32 bits of an argument must be none of `values`; else the call is refused."""

    argument: int
    values: tuple[int, ...]
    otherwise: Refused


Check = Only | Never


@dataclass(frozen=True, slots=True)
class Is:
    """An argument equals `value`: all of it, or its low 32 bits."""

    argument: int
    value: int
    bits: Literal[32, 64] = 64


@dataclass(frozen=True, slots=True)
class Within:
    """The low 32 bits of an argument, unsigned, are at least `first`, and less than `end`."""

    argument: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Has:
    """An argument has one of `bits`, which are among its low 32."""

    argument: int
    bits: int


@dataclass(frozen=True, slots=True)
class Both:
    """Both hold."""

    one: Is | Within | Has
    other: Is | Within | Has


Condition = Is | Within | Has | Both


@dataclass(frozen=True, slots=True)
class Emulated:
    """The supervisor does it, `how`. Where all of `local` hold, and none of `but`, the guest's kernel does; where both are empty, it never does."""

    how: str
    local: tuple[Condition, ...] = ()
    but: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """See the module."""

    name: str
    x86_64: int | None
    aarch64: int | None
    group: Group
    outcome: Refused | Emulated | None
    checks: tuple[Check, ...] = ()
    note: str = ""

    def number(self, architecture: Architecture) -> int | None:
        """The call's number there."""
        return self.x86_64 if architecture == "x86_64" else self.aarch64

    @property
    def refused(self) -> Refused | None:
        return self.outcome if isinstance(self.outcome, Refused) else None

    @property
    def emulated(self) -> Emulated | None:
        return self.outcome if isinstance(self.outcome, Emulated) else None

    @property
    def action(self) -> Literal["local", "emulated", "refused"]:
        return "refused" if self.refused else "emulated" if self.emulated else "local"
