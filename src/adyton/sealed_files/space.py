"""Which slots of the container, of 4096 bytes each, are in use. The first two are the superblocks'.

FREE     nothing of the last commit is there, nor of what comes
USED     of the last commit, and of the next one as far as is known
FRESH    of the next one only
LEAVING  of the last one only: not to be overwritten before the next one is durable
"""

from __future__ import annotations

import errno

from adyton.errors import IntegrityError
from adyton.sealed_files.storage import StorageError

FREE, USED, FRESH, LEAVING = range(4)
SUPERBLOCKS = 2
MAX_SLOTS = (1 << 32) - 1
_COMMITTED = bytes.maketrans(bytes((FRESH, LEAVING)), bytes((USED, FREE)))


class Space:
    """See the module. `limit`: slots that the container may have at most.

    `held`: bytes of memory for what leads to blocks (contents). `wanted`: slots that what was changed in memory will take.
    """

    def __init__(self, limit: int) -> None:
        self.limit = min(limit, MAX_SLOTS)
        self._slots = bytearray([USED] * SUPERBLOCKS)
        self.held = self.wanted = 0
        self._free = 0
        self._next = SUPERBLOCKS

    def __len__(self) -> int:
        """Slots that the container has, or will have."""
        return len(self._slots)

    @property
    def room(self) -> int:
        """How many more can be taken."""
        return self._free + self.limit - len(self._slots)

    @property
    def needed(self) -> int:
        """Slots that the container will have once what comes is durable."""
        return len(self._slots.rstrip(bytes([FREE, LEAVING])))

    def grow(self, slots: int) -> None:
        """The container has so many; all beyond what was known are free."""
        more = max(0, slots - len(self._slots))
        self._slots.extend(bytes(more))
        self._free += more

    def use(self, slot: int) -> None:
        """A slot that the last commit uses. IntegrityError for one that is in use already, or that is none."""
        if slot >= len(self._slots) or self._slots[slot] != FREE:
            raise IntegrityError(
                f"the sealed files are not whole: slot {slot} of their container is used twice, or is none"
            )
        self._slots[slot] = USED
        self._free -= 1

    def take(self) -> int:
        """A free one, if it can be had right behind the one that was taken before. ENOSPC."""
        if self._free:
            slot = self._slots.find(FREE, self._next)
            if slot < 0:
                slot = self._slots.find(FREE)
            self._free -= 1
        elif len(self._slots) < self.limit:
            slot = len(self._slots)
            self._slots.append(FREE)
        else:
            raise StorageError(errno.ENOSPC, "the sealed files have no room left")
        self._slots[slot] = FRESH
        self._next = slot + 1
        return slot

    def replace(self, old: int) -> int:
        """A free one in the place of `old`; 0: of none. ENOSPC: never where that was FRESH, as after a commit that failed."""
        is_fresh = self._slots[old] == FRESH
        if is_fresh:
            self.give_back(old)
        slot = self.take()
        if old and not is_fresh:
            self.give_back(old)
        return slot

    def give_back(self, slot: int) -> None:
        """What was there is not needed any more by what comes."""
        if self._slots[slot] == FRESH:
            self._slots[slot] = FREE
            self._free += 1
        else:
            self._slots[slot] = LEAVING

    def committed(self) -> None:
        """What came is durable."""
        self._slots = self._slots.translate(_COMMITTED)
        self._free = self._slots.count(FREE)
        self._next = SUPERBLOCKS

    def trim(self) -> int:
        """Forget free slots at the end; how many slots the container then has."""
        kept = len(self._slots.rstrip(bytes([FREE])))
        self._free -= len(self._slots) - kept
        del self._slots[kept:]
        self._next = min(self._next, kept)
        return kept
