"""What the guest's filter asks about: emulated calls go to who emulates them, refused ones are counted and get their errno.

Decided here is only whose a call is. It is decided by its number and its register arguments, as the filter did.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adyton.hostcall import abi
from adyton.runtime.process.filter import AUDIT_ARCH, number_of
from adyton.runtime.process.supervisor.notifications import GoneError, Listener, Note
from adyton.runtime.process.table import NO_PROGRAMS, PROGRAM_CALLS, ROWS, architecture
from adyton.runtime.process.table_rows import Only, Refused, Row

UNKNOWN = Refused("ENOSYS", "this version of adyton does not know the call")
KEPT_NAMES = 1024  # counted apart; what comes after that is counted together
_OTHERS = "other calls"

Handler = Callable[[Note], None]


def refusal(row: Row | None, arguments: tuple[int, ...]) -> Refused | None:
    """Why a call with these arguments is refused; None if it is not. The same as the filter says."""
    if row is None:
        return UNKNOWN
    if row.refused is not None:
        return row.refused
    if row.name in PROGRAM_CALLS:
        return NO_PROGRAMS  # asked about only where no program may be started
    for check in row.checks:
        low = arguments[check.argument] & 0xFFFFFFFF
        holds = low & check.mask in check.values if isinstance(check, Only) else low not in check.values
        if not holds:
            return check.otherwise
    return None


@dataclass
class _Refusals:
    refused: Refused
    count: int = 0
    told: int = 0


class SystemCalls:
    """Reads the listener. `handlers`: who emulates a call, by its name; they answer now or later. `tell` is given each call's first refusal."""

    def __init__(
        self, listener: Listener, handlers: Mapping[str, Handler], tell: Callable[[abi.RefusedCall], None]
    ) -> None:
        where = architecture()
        assert where is not None
        self._architecture = AUDIT_ARCH[where]
        self._rows = {number: row for row in ROWS if (number := row.number(where)) is not None}
        self._listener = listener
        self._handlers = handlers
        self._tell = tell
        self._refusals: dict[str, _Refusals] = {}

    def receive(self) -> None:
        """The listener is readable."""
        note = self._listener.receive()
        if note is None:
            return
        row = self._rows.get(note.number) if note.architecture == self._architecture else None
        refused = refusal(row, note.arguments)
        try:
            if refused is not None:
                self._listener.answer(note, error=number_of(refused))
                self.count(row.name if row else f"system call {note.number}", refused)
            elif row is not None and (handler := self._handlers.get(row.name)) is not None:
                handler(note)
            else:
                self._listener.answer(note, error=errno.ENOSYS)
        except GoneError:
            pass  # a signal came first; if the call is restarted, it will be asked about again

    def count(self, name: str, refused: Refused) -> None:
        """Count a call that was refused elsewhere."""
        if name not in self._refusals and len(self._refusals) >= KEPT_NAMES:
            name, refused = _OTHERS, UNKNOWN
        entry = self._refusals.setdefault(name, _Refusals(refused))
        entry.count += 1
        if entry.count == 1:
            entry.told = 1
            self._tell(abi.RefusedCall(name, refused.errno, refused.reason, 1))

    def tell_counts(self) -> None:
        """Tell of what was refused since it was last told of."""
        for name, entry in self._refusals.items():
            if entry.told < entry.count:
                entry.told = entry.count
                self._tell(abi.RefusedCall(name, entry.refused.errno, entry.refused.reason, entry.count))
