"""The store of sealed files against a model: whenever the power goes, what is there afterwards is what the last commit had, or the one that was under way."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from simulated_disk import Cut, Keys, SimulatedDisk
from thorough import few_or

from adyton.sealed_files import store as store_module
from adyton.sealed_files.cipher import BLOCK
from adyton.sealed_files.contents import FAN_OUT
from adyton.sealed_files.storage import StorageError, run
from adyton.sealed_files.store import ATTRIBUTES_SIZE, Store, StoredObject

KEYS = Keys()
CAPACITY = 1 << 30
# In the first block and about its end, about the end of what one node leads to, and of what two levels lead to.
offsets = st.one_of(
    *(
        st.integers(max(0, near - 5000), near + 5000)
        for near in (0, 2 * BLOCK, 128 * BLOCK, 300 * BLOCK, 128 * 128 * BLOCK)
    )
)
chunks = st.builds(
    lambda byte, size: bytes([byte]) * size,
    st.integers(1, 255),
    st.sampled_from([1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK]),
)
seeds = st.integers(0, 1 << 32)


class Sparse(dict):
    """Content of a model: blocks that are not all zeros, and the size."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def write(self, offset: int, data: bytes) -> None:
        for index in range(offset // BLOCK, (offset + len(data) - 1) // BLOCK + 1):
            block = bytearray(self.get(index, bytes(BLOCK)))
            low, high = max(offset, index * BLOCK), min(offset + len(data), (index + 1) * BLOCK)
            block[low - index * BLOCK : high - index * BLOCK] = data[low - offset : high - offset]
            self[index] = bytes(block)
        self.size = max(self.size, offset + len(data))

    def resize(self, size: int) -> None:
        if size < self.size:
            for index in [index for index in self if index * BLOCK >= size]:
                del self[index]
            if size % BLOCK and size // BLOCK in self:
                self[size // BLOCK] = self[size // BLOCK][: size % BLOCK].ljust(BLOCK, b"\0")
        self.size = size

    def punch(self, offset: int, end: int) -> None:
        end = min(end, self.size)
        if offset >= end:
            return
        for index in [index for index in self if offset < (index + 1) * BLOCK and index * BLOCK < end]:
            low, high = max(offset, index * BLOCK), min(end, (index + 1) * BLOCK)
            block = bytearray(self[index])
            block[low - index * BLOCK : high - index * BLOCK] = bytes(high - low)
            self[index] = bytes(block)

    def seen(self) -> tuple:
        return self.size, {index: block for index, block in self.items() if any(block)}


def seen(store: Store, disk: SimulatedDisk, stored: StoredObject) -> tuple:
    """The same of a stored object: all of it is read."""
    found = {}
    contents = stored.contents
    for index in range(contents.blocks):
        if index in contents.written or any(contents.pointer(index)):
            block = run(store.read(stored, index * BLOCK, BLOCK), disk).ljust(BLOCK, b"\0")
            if any(block):
                found[index] = block
    return stored.size, found


class Stores(RuleBasedStateMachine):
    numbered = Bundle("numbered")
    remembers = False
    capacity = CAPACITY

    @initialize()
    def begin(self) -> None:
        self.disk = SimulatedDisk()
        self.store = Store(KEYS, self.capacity, remembers=self.remembers)
        run(self.store.open(), self.disk)
        self.now: dict[int, tuple[Sparse, bytes]] = {}
        self.committed: list[dict] = [{}]  # one of these is there after a crash

    # -- changes ------------------------------------------------------------------------------------------------------

    def has_room(self, change: Callable[[], object]) -> bool:
        """Whether it was done; in a large container always."""
        try:
            change()
        except StorageError as error:
            if self.capacity == CAPACITY or error.number != errno.ENOSPC:
                raise
            return False
        return True

    @rule(target=numbered)
    def create(self) -> int:
        made: list[StoredObject] = []
        if not self.has_room(lambda: made.append(self.store.create())):
            return 0
        self.store.number(made[0])
        self.now[made[0].number] = Sparse(), bytes(ATTRIBUTES_SIZE)
        return made[0].number

    @rule(number=numbered, offset=offsets, data=chunks)
    def write(self, number: int, offset: int, data: bytes) -> None:
        if number in self.now:
            stored = self.store.objects[number]
            if self.has_room(lambda: run(self.store.write(stored, offset, data), self.disk)):
                self.now[number][0].write(offset, data)

    @rule(number=numbered, size=offsets)
    def resize(self, number: int, size: int) -> None:
        if number in self.now:
            stored = self.store.objects[number]
            if self.has_room(lambda: run(self.store.resize(stored, size), self.disk)):
                self.now[number][0].resize(size)

    @rule(number=numbered)
    def empty(self, number: int) -> None:
        """That needs no room."""
        if number in self.now:
            run(self.store.resize(self.store.objects[number], 0), self.disk)
            self.now[number][0].resize(0)

    @rule(number=numbered, offset=offsets, size=st.one_of(st.integers(0, 3 * BLOCK), offsets))
    def punch(self, number: int, offset: int, size: int) -> None:
        if number in self.now:
            stored = self.store.objects[number]
            if self.has_room(lambda: run(self.store.punch(stored, offset, offset + size), self.disk)):
                self.now[number][0].punch(offset, offset + size)

    @rule(number=numbered, attributes=st.binary(min_size=ATTRIBUTES_SIZE, max_size=ATTRIBUTES_SIZE))
    def describe(self, number: int, attributes: bytes) -> None:
        if number in self.now:
            self.store.describe(self.store.objects[number], attributes)
            self.now[number] = self.now[number][0], attributes

    @rule(number=numbered, offset=offsets, data=chunks, late=st.booleans())
    def remove(self, number: int, offset: int, data: bytes, late: bool) -> None:
        """Some are written to once more, over a commit, as an open file without a name is."""
        if number in self.now:
            stored = self.store.objects[number]
            self.store.withdraw(stored)
            del self.now[number]
            before = seen(self.store, self.disk, stored)
            if late and self.has_room(lambda: run(self.store.write(stored, offset, data), self.disk)):
                self.commit()
                after = seen(self.store, self.disk, stored)
                assert after[0] == max(before[0], offset + len(data))
                assert run(self.store.read(stored, offset, len(data)), self.disk) == data
            self.store.discard(stored)

    # -- commits ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict:
        return {number: (content.seen(), attributes) for number, (content, attributes) in self.now.items()}

    @rule()
    def commit(self) -> None:
        run(self.store.commit(), self.disk)
        self.committed = [self.snapshot()]

    @rule(room=st.integers(-2, 3))
    def commit_on_a_full_disk(self, room: int) -> None:
        """It fails, or it does not; then it is done once more."""
        self.disk.limit = len(self.disk.data) + room * BLOCK
        self.committed.append(self.snapshot())
        try:
            run(self.store.commit(), self.disk)
        except StorageError:
            pass
        self.disk.limit = None
        if not self.store._broken:
            self.commit()

    @rule(requests=st.integers(0, 9), seed=seeds)
    def crash_in_commit(self, requests: int, seed: int) -> None:
        self.committed.append(self.snapshot())
        self.disk.left = requests
        try:
            run(self.store.commit(), self.disk)
        except Cut:
            pass
        else:
            self.committed = self.committed[-1:]
        self.crash(seed)

    @rule(seed=seeds)
    def crash(self, seed: int) -> None:
        self.disk = self.disk.crash(seed)
        self.store = Store(KEYS, self.capacity, remembers=self.remembers)
        run(self.store.open(), self.disk)
        there = self.contents()
        assert there in self.committed
        self.committed = [there]
        self.now = {}
        for number, ((size, blocks), attributes) in there.items():
            content = Sparse()
            content.update(blocks)
            content.size = size
            self.now[number] = content, attributes

    def contents(self) -> dict:
        return {
            number: (seen(self.store, self.disk, stored), stored.attributes)
            for number, stored in self.store.objects.items()
        }

    @invariant()
    def is_as_the_model(self) -> None:
        if hasattr(self, "store") and not self.store._broken:
            assert self.contents() == self.snapshot()

    @invariant()
    def nothing_is_forgotten_that_a_commit_will_take(self) -> None:
        if not hasattr(self, "store"):
            return
        every = [*self.store.objects.values(), *self.store._unnumbered, self.store._past]
        contents = [self.store._table, *(each.contents for each in every)]
        assert self.store._space.wanted == sum(len(each.written) + len(each._changed) for each in contents)
        for each in contents:
            places = {(0, index) for index in each.written} | each._changed
            for level, index in places:
                assert level == each.depth or (level + 1, index // FAN_OUT) in each._changed
            for index in each.written:
                assert index < each.blocks

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.crash(0)


class RememberedStores(Stores):
    remembers = True


class FullStores(Stores):
    """In whose container there is no room left soon: what is removed is removed nevertheless, and every commit that the disk takes succeeds."""

    capacity = 100 * BLOCK

    @rule()
    def remove_all(self) -> None:
        for number in self.now:
            stored = self.store.objects[number]
            self.store.withdraw(stored)
            self.store.discard(stored)
        self.now.clear()
        self.commit()


@given(
    changes=st.lists(st.tuples(offsets, chunks), min_size=1, max_size=4),
    more=st.lists(st.tuples(offsets, chunks), min_size=1, max_size=4),
)
@settings(max_examples=few_or(8, 15))
def test_a_commit_is_cut_at_each_request(changes: list, more: list) -> None:
    """What it then has of what was not synced is chosen a dozen times each."""

    def prepared() -> tuple[SimulatedDisk, Store, list]:
        disk, model, states = SimulatedDisk(), Sparse(), []
        store = Store(KEYS, CAPACITY)
        run(store.open(), disk)
        stored = store.create()
        store.number(stored)
        for part in (changes, more):
            for offset, data in part:
                run(store.write(stored, offset, data), disk)
                model.write(offset, data)
            states.append(model.seen())
            if part is changes:
                run(store.commit(), disk)
        return disk, store, states

    requests = 0
    while True:
        disk, store, states = prepared()
        disk.left = requests
        try:
            run(store.commit(), disk)
        except Cut:
            ended = False
        else:
            ended = True
        for seed in range(few_or(12, 30)):
            after = disk.crash(seed)
            again = Store(KEYS, CAPACITY)
            run(again.open(), after)
            found = seen(again, after, again.objects[1])
            assert found in states[ended:], (requests, seed)
        if ended:
            break
        requests += 1


@pytest.fixture(autouse=True, scope="module")
def _little_memory() -> Iterator[None]:
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(store_module, "HELD", 4 * BLOCK)
    monkeypatch.setattr(store_module, "CACHED", 3)
    monkeypatch.setattr(store_module, "PIECE", 2)
    monkeypatch.setattr(store_module, "SPARE", 1)
    monkeypatch.setattr(store_module, "_TRIMMED", 2)
    yield
    monkeypatch.undo()


TestStores = Stores.TestCase
TestRememberedStores = RememberedStores.TestCase
TestFullStores = FullStores.TestCase
TestStores.settings = TestRememberedStores.settings = TestFullStores.settings = settings(
    max_examples=few_or(40, 100), stateful_step_count=30, deadline=None
)
