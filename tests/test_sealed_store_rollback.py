"""The container of sealed files set back as a whole, where somebody remembers its last commit: it is found; and a crash at any point locks nobody out."""

from __future__ import annotations

import errno

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from simulated_disk import Cut, Keys, SimulatedDisk

from adyton.errors import IntegrityError
from adyton.sealed_files import memory
from adyton.sealed_files import store as store_module
from adyton.sealed_files.memory import NOTE_SIZE, Commit, Notes
from adyton.sealed_files.storage import Recall, Remember, StorageError, run
from adyton.sealed_files.store import Store

KEYS = Keys()
CAPACITY = 64 << 20


def opened(disk: SimulatedDisk, *, remembers: bool = True, demands: bool = False) -> Store:
    store = Store(KEYS, CAPACITY, remembers=remembers, demands=demands)
    run(store.open(), disk)
    return store


def append(store: Store, disk: SimulatedDisk, token: int) -> None:
    """A commit, of one token more in the first object."""
    if not store.objects:
        store.number(store.create())
    log = store.objects[1]
    run(store.write(log, log.size, bytes([token])), disk)
    run(store.commit(), disk)


def tokens(store: Store, disk: SimulatedDisk) -> bytes:
    return run(store.read(store.objects[1], 0, 1 << 20), disk) if store.objects else b""


def copy(disk: SimulatedDisk, data: bytes | None = None) -> SimulatedDisk:
    """Another container, with what is remembered of this one."""
    made = SimulatedDisk(disk.data if data is None else data)
    made.remembered = disk.remembered
    return made


@pytest.fixture
def disk() -> SimulatedDisk:
    """Of two commits in one epoch. `first`: what it was after the first."""
    disk = SimulatedDisk()
    store = opened(disk)
    append(store, disk, 1)
    disk.first = bytes(disk.data)
    disk.first_note = disk.remembered
    append(store, disk, 2)
    return disk


def test_a_container_that_was_set_back_as_a_whole_is_found_by_who_remembers_only(disk: SimulatedDisk) -> None:
    old = copy(disk, disk.first)
    with pytest.raises(IntegrityError, match="set back: their container is at commit 1, and commit 2") as caught:
        opened(old)
    assert "Restore the latest one" in str(caught.value)
    assert tokens(opened(old, remembers=False), old) == b"\1"


def test_a_container_that_was_removed_is_found(disk: SimulatedDisk) -> None:
    with pytest.raises(IntegrityError, match="are gone: their container is empty, and commit 2 of them is remembered"):
        opened(copy(disk, b""))


def test_another_whole_container_of_the_same_enclave_is_found(disk: SimulatedDisk) -> None:
    other = SimulatedDisk()
    append(opened(other), other, 9)
    with pytest.raises(IntegrityError, match="are others than those that are remembered"):
        opened(copy(disk, bytes(other.data)))


@pytest.mark.parametrize("commits", [1, 5])
def test_a_branch_is_found_however_far_it_has_gone_on(disk: SimulatedDisk, commits: int) -> None:
    """An enclave was given an old state, with the note of that time, and has gone on from there."""
    branch = copy(disk, disk.first)
    branch.remembered = disk.first_note
    store = opened(branch)
    for token in range(commits):
        append(store, branch, token)
    branch.remembered = disk.remembered
    with pytest.raises(IntegrityError, match=f"a branch with commit {1 + commits}, and commit 2, which it never had"):
        opened(branch)


def test_what_another_party_has_committed_since_is_accepted(disk: SimulatedDisk) -> None:
    """Two clients, each with a memory of its own, take turns; and a third one that comes rarely."""
    notes = {"ann": disk.remembered, "bob": b"", "rare": disk.remembered}
    for turn in range(6):
        who = ("ann", "bob")[turn % 2]
        disk.remembered = notes[who]
        store = opened(disk)
        append(store, disk, 3 + turn)
        append(store, disk, 3 + turn)
        notes[who] = disk.remembered
    disk.remembered = notes["rare"]
    assert len(tokens(opened(disk), disk)) == 2 + 2 * 6


def test_what_was_seen_is_not_set_back_either(disk: SimulatedDisk) -> None:
    """Bob loads after Ann's commit, and writes nothing: what he has seen is his to remember."""
    bob = copy(disk, disk.first)
    bob.remembered = disk.first_note
    opened(bob)
    bob.data[:] = disk.data
    opened(bob)
    bob.data[:] = disk.first
    with pytest.raises(IntegrityError, match="set back"):
        opened(bob)


def test_a_copy_that_two_enclaves_go_on_from_is_found_by_the_second_commit(disk: SimulatedDisk) -> None:
    one, other = disk, copy(disk)
    first, second = opened(one), opened(other)
    append(first, one, 3)
    other.remembered = one.remembered  # it is one party's memory
    with pytest.raises(StorageError) as caught:
        append(second, other, 4)
    assert caught.value.number == errno.ESTALE
    with pytest.raises(StorageError):
        append(second, other, 5)  # nor later


def test_a_commit_that_cannot_be_remembered_fails_and_so_do_all_that_follow(disk: SimulatedDisk) -> None:
    store = opened(disk)
    disk.fails = {Remember}
    with pytest.raises(StorageError):
        append(store, disk, 3)
    disk.fails = set()
    with pytest.raises(StorageError, match="load the enclave again"):
        append(store, disk, 4)
    again = opened(disk)
    assert tokens(again, disk) == b"\1\2\3"  # one commit ahead of what is remembered
    append(again, disk, 4)


def test_what_is_not_remembered_is_doubtful_and_can_be_refused(disk: SimulatedDisk) -> None:
    assert opened(disk).doubtful is None
    assert opened(SimulatedDisk()).doubtful is None
    assert opened(SimulatedDisk(), demands=True).doubtful is None
    assert opened(SimulatedDisk(), remembers=False).doubtful == memory.NOBODY
    with pytest.raises(IntegrityError, match="nobody remembers them here"):
        opened(SimulatedDisk(), remembers=False, demands=True)
    lost = SimulatedDisk(disk.data)
    with pytest.raises(IntegrityError, match="nothing is remembered of them"):
        opened(lost, demands=True)
    assert opened(lost).doubtful == memory.FIRST
    assert lost.remembered == disk.remembered  # from then on
    assert opened(lost, demands=True).doubtful is None


@pytest.mark.parametrize("position", [0, 20, 35, NOTE_SIZE - 1])
def test_a_note_that_was_changed_opens_nothing(disk: SimulatedDisk, position: int) -> None:
    note = bytearray(disk.remembered)
    note[position] ^= 1
    for changed in (bytes(note), disk.remembered[:-1], b"x"):
        disk.remembered = changed
        with pytest.raises(IntegrityError, match=r"damaged|others than"):
            opened(disk)


def test_a_note_can_be_made_with_the_stores_secret_only() -> None:
    commit = Commit(bytes(16), 7)
    note = Notes(bytes(32)).of(commit)
    assert Notes(bytes(32)).read(note) == commit
    with pytest.raises(IntegrityError, match="others"):
        Notes(bytes(31) + b"x").read(note)


def test_who_has_no_memory_is_asked_nothing(disk: SimulatedDisk) -> None:
    disk.requests.clear()
    append(opened(disk, remembers=False), disk, 3)
    assert not any(isinstance(each, Recall | Remember) for each in disk.requests)


@given(seed=st.integers(0, 1 << 32), epochs=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_a_crash_at_any_point_of_loads_and_commits_locks_nobody_out(seed: int, epochs: int) -> None:
    """Whoever demands that it is remembered goes on from the last commit, or from the one that was under way."""
    left = 0
    while True:
        disk, done = SimulatedDisk(), b""
        try:
            for epoch in range(epochs):
                disk.left = left if epoch == epochs - 1 else None
                store = opened(disk, demands=True)
                for token in range(2):
                    append(store, disk, token)
                    done += bytes([token])
        except Cut:
            ended = False
        else:
            ended = True
        disk.left = None
        after = disk.crash(seed)
        again = opened(after, demands=True)
        found = tokens(again, after)
        assert found in (done, done + bytes([len(done) % 2]))
        append(again, after, 9)
        assert tokens(opened(after, demands=True), after) == found + b"\t"
        if ended:
            return
        left += 1


class Parties(RuleBasedStateMachine):
    """One container, and three who have an enclave load it; each has a memory, and knows the tokens that he was promised. An enemy shows any state that there ever was.

    Whatever opens for one of them begins with what he was promised. As long as the enemy has done nothing, it opens, whenever the power went.
    """

    @initialize()
    def begin(self) -> None:
        self.disk = SimulatedDisk()
        self.notes = [b"", b"", b""]
        self.promised = [b"", b"", b""]
        self.seen: list[bytes] = []
        self.honest = True
        self.token = 0

    def session(self, who: int, disk: SimulatedDisk, commits: int) -> None:
        disk.remembered = self.notes[who]
        try:
            store = opened(disk)
            assert tokens(store, disk).startswith(self.promised[who])
            self.promised[who] = tokens(store, disk)
            for _ in range(commits):
                self.token = self.token % 250 + 1
                append(store, disk, self.token)
                self.promised[who] = tokens(store, disk)
                self.seen.append(bytes(disk.data))
        finally:
            self.notes[who] = disk.remembered

    @rule(who=st.integers(0, 2), commits=st.integers(0, 3))
    def load(self, who: int, commits: int) -> None:
        try:
            self.session(who, self.disk, commits)
        except IntegrityError:
            assert not self.honest

    @rule(who=st.integers(0, 2), commits=st.integers(0, 2), left=st.integers(0, 25), seed=st.integers(0, 1 << 32))
    def load_until_the_power_goes(self, who: int, commits: int, left: int, seed: int) -> None:
        self.disk.left = left
        try:
            self.session(who, self.disk, commits)
        except Cut:
            pass
        except IntegrityError:
            assert not self.honest
        self.disk.left = None
        self.disk = self.disk.crash(seed)
        self.seen.append(bytes(self.disk.data))

    @precondition(lambda self: self.seen)
    @rule(who=st.integers(0, 2), data=st.data(), commits=st.integers(0, 2))
    def attack(self, who: int, data: st.DataObject, commits: int) -> None:
        old = SimulatedDisk(data.draw(st.sampled_from(self.seen)))
        try:
            self.session(who, old, commits)
        except IntegrityError:
            return
        if commits:
            self.disk, self.honest = old, False


@pytest.fixture(autouse=True, scope="module")
def _little_memory():
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(store_module, "_ENTRIES", memory.ENTRY.size * 2)
    yield
    monkeypatch.undo()


TestParties = Parties.TestCase
TestParties.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
