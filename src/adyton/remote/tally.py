"""What a client counts of its enclave, and what that says that it has counted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from adyton.communicator.messages import Counts
from adyton.hostcall.client.executor import Executor


class Tally:
    """`told`: by the enclave."""

    def __init__(self, executor: Executor, traffic: Mapping[str, int]) -> None:
        """`traffic`: bytes of the connection, see Line."""
        self._entry_calls = 0
        self._traffic = traffic
        self.told = self._loading = Counts(0, 0, 0, 0)
        self._executor = executor
        self._first_start: float | None = None
        self._last_end = 0.0

    def loaded(self) -> None:
        """What was counted until now is the load's."""
        self._loading = self.told

    def entered(self) -> None:
        """An entry was called."""
        self._entry_calls += 1
        self._first_start = self._first_start or time.monotonic()

    def ended(self) -> None:
        """A call has come to its end."""
        self._last_end = time.monotonic()

    @property
    def seconds(self) -> float:
        """From the first entry's start to the end of what came last."""
        return 0.0 if self._first_start is None else max(0.0, self._last_end - self._first_start)

    def counts(self) -> Counts:
        """What the enclave says that it has counted since it was loaded."""
        now, before = self.told, self._loading
        return Counts(
            round_trips=max(0, now.round_trips - before.round_trips),
            waiting=max(0, now.waiting - before.waiting),
            hits=max(0, now.hits - before.hits),
            misses=max(0, now.misses - before.misses),
        )

    def refused(self) -> dict[str, int]:
        """How often the enclave's runtime has refused which system calls."""
        return dict(self._executor.refused)

    def stats(self) -> dict[str, Any]:
        """Counts since the load, as `--stats` writes them."""
        return {
            "entry_calls": self._entry_calls,
            "host_calls": dict(self._executor.counts),
            "denied": dict(self._executor.denied),
            "round_trips": self.counts().round_trips,
            "bytes_sent": self._traffic["bytes_sent"],
            "bytes_received": self._traffic["bytes_received"],
            "seconds": self.seconds,
        }
