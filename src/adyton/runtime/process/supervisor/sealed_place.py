"""Where an enclave's sealed files lie, and who remembers their last commit: decided at load, and opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adyton.hostcall import abi
from adyton.runtime.process.supervisor.calls import Calls
from adyton.runtime.process.supervisor.sealed import SealedFiles
from adyton.runtime.process.supervisor.sealed_memory import ClientMemory, Memory, OwnMemory
from adyton.runtime.process.supervisor.sealed_storage import ClientDisk, Disk, Do, OwnDisk, Served, at_once
from adyton.runtime.process.supervisor.view import PARK, View
from adyton.sealed_files.cipher import Keys
from adyton.sealed_files.storage import Recall, Remember, Request
from adyton.sealed_files.store import Store


@dataclass(frozen=True, slots=True)
class SealedPlace:
    """`capacity`: bytes that the container may have at most. `container`: a descriptor of it, or the client's path. `demands`: see Store.

    `memory`: a descriptor of this server's file; or under what the client has its notes; None: nobody remembers. `do`: what waits for this server's disk.
    """

    keys: Keys
    capacity: int
    container: int | str
    memory: int | abi.Owned | None = None
    demands: bool = False
    do: Do = at_once

    def made(
        self, view: View, calls: Calls, reserve: Callable[[], int], say: Callable[[str], None]
    ) -> tuple[SealedFiles, Disk]:
        """The files, not loaded yet, and what serves their requests. `reserve`: a handle, for the client's container. `say`: see SealedFiles."""
        disk: Disk = (
            OwnDisk(self.container, self.do)
            if isinstance(self.container, int)
            else ClientDisk(calls, self.container, reserve())
        )
        if self.memory is not None:
            memory: Memory = (
                OwnMemory(self.memory, self.do) if isinstance(self.memory, int) else ClientMemory(calls, self.memory)
            )
            disk = _Remembered(disk, memory)
        store = Store(self.keys, self.capacity, remembers=self.memory is not None, demands=self.demands)
        return SealedFiles(store, view.tree.number, view.now, say, PARK, view.free), disk


class _Remembered:
    """A disk, and somebody else who remembers."""

    def __init__(self, disk: Disk, memory: Memory) -> None:
        self._disk = disk
        self._memory = memory

    def serve(self, request: Request) -> Served:
        """See Disk and Memory."""
        if isinstance(request, Recall | Remember):
            return (yield from self._memory.serve(request))
        return (yield from self._disk.serve(request))
