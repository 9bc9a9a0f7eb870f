"""The container of sealed files in the hands of an enemy: whatever is changed in it is found, or made no difference."""

from __future__ import annotations

import contextlib
import errno
import random
from collections import Counter

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from simulated_disk import Keys, SimulatedDisk
from thorough import part_of

from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.sealing.keys import RootKeys, Sealing
from adyton.attestation.sealing.roots import SimulatedRoot
from adyton.crypto import aead
from adyton.errors import IntegrityError, PlatformError, UsageError
from adyton.runtime.process.supervisor.sealed_storage import FileKeys
from adyton.sealed_files import store as store_module
from adyton.sealed_files.cipher import BLOCK, BlockCipher
from adyton.sealed_files.storage import StorageError, Sync, run
from adyton.sealed_files.store import ATTRIBUTES_SIZE, Store

KEYS = Keys()
CAPACITY = 64 << 20
SECRET = b"a secret that is long enough to be looked for"


def opened(disk: SimulatedDisk, keys: Keys = KEYS) -> Store:
    store = Store(keys, CAPACITY)
    run(store.open(), disk)
    return store


def contents(disk: SimulatedDisk) -> dict[int, tuple[bytes, bytes]]:
    store = opened(disk)
    return {
        number: (run(store.read(stored, 0, stored.size), disk), stored.attributes)
        for number, stored in store.objects.items()
    }


@pytest.fixture
def disk() -> SimulatedDisk:
    """Of two commits, which have two objects, and what the first had behind nothing of the second."""
    disk = SimulatedDisk()
    store = opened(disk)
    for content in (SECRET * 300, SECRET):
        stored = store.create()
        store.number(stored)
        run(store.write(stored, 0, content), disk)
        store.describe(stored, b"attributes")
    run(store.commit(), disk)
    disk.first = bytes(disk.data)
    run(store.write(store.objects[2], 10, b"another"), disk)
    run(store.commit(), disk)
    return disk


def test_what_was_committed_is_there_again(disk: SimulatedDisk) -> None:
    second = bytearray(SECRET)
    second[10:17] = b"another"
    attributes = b"attributes".ljust(ATTRIBUTES_SIZE, b"\0")
    assert contents(disk) == {1: (SECRET * 300, attributes), 2: (second, attributes)}


def test_the_container_holds_nothing_that_can_be_read(disk: SimulatedDisk) -> None:
    assert SECRET[:8] not in disk.data
    assert b"attributes" not in disk.data
    counted = Counter(disk.data[2 * BLOCK :])
    assert max(counted.values()) < 2 * len(disk.data) / 256


def test_each_byte_that_is_flipped_is_found_or_made_no_difference(disk: SimulatedDisk) -> None:
    right = contents(disk)
    damaged = different = 0
    flipped = part_of(range(len(disk.data)), 7)
    for offset in flipped:
        changed = SimulatedDisk(disk.data)
        changed.data[offset] ^= 1 << offset % 8
        try:
            store = opened(changed)
            found = {
                number: (run(store.read(stored, 0, stored.size), changed), stored.attributes)
                for number, stored in store.objects.items()
            }
        except IntegrityError:
            different += 1
        else:
            assert found == right, offset
            damaged += store.damaged is not None
    superblocks = sum(offset < 2 * BLOCK for offset in flipped)
    assert damaged == superblocks  # each is there twice
    assert different >= 3 * superblocks  # all that is in use: five blocks of content, a node or more, the table


def test_both_superblocks_damaged_are_found(disk: SimulatedDisk) -> None:
    disk.data[100] ^= 1
    disk.data[BLOCK + 100] ^= 1
    with pytest.raises(IntegrityError, match="neither superblock of their container can be: it was changed"):
        opened(disk)


@pytest.mark.parametrize("removed", [1, BLOCK - 1, BLOCK, 3 * BLOCK, 6 * BLOCK])
def test_a_container_that_was_cut_off_is_found(disk: SimulatedDisk, removed: int) -> None:
    del disk.data[-removed:]
    with pytest.raises(IntegrityError, match="cut off"):
        opened(disk)


def test_slots_that_change_places_are_found(disk: SimulatedDisk) -> None:
    right = contents(disk)
    slots = len(disk.data) // BLOCK
    found = 0
    for one in range(2, slots):
        for other in range(one + 1, slots):
            changed = SimulatedDisk(disk.data)
            for into, of in ((one, other), (other, one)):
                changed.data[into * BLOCK : (into + 1) * BLOCK] = disk.data[of * BLOCK : (of + 1) * BLOCK]
            try:
                assert contents(changed) == right
            except IntegrityError:
                found += 1
    assert found > slots


def test_an_older_version_of_any_slots_is_found(disk: SimulatedDisk) -> None:
    """Of any of them but both superblocks, which are all that says what the last version is."""
    right = contents(disk)
    chance = random.Random(0)
    for slots in [
        *([slot] for slot in range(len(disk.first) // BLOCK)),
        *(chance.sample(range(2, 9), 3) for _ in range(20)),
    ]:
        changed = SimulatedDisk(disk.data)
        for slot in slots:
            changed.data[slot * BLOCK : (slot + 1) * BLOCK] = disk.first[slot * BLOCK : (slot + 1) * BLOCK]
        try:
            assert contents(changed) == right
        except IntegrityError:
            pass


def test_a_running_enclave_finds_older_blocks(disk: SimulatedDisk) -> None:
    store = opened(disk)
    stored = store.objects[1]
    before = bytes(disk.data)
    run(store.write(stored, 0, b"changed"), disk)
    run(store.commit(), disk)
    store._read.clear()
    disk.data[: len(before)] = before
    with pytest.raises(IntegrityError, match="set back"):
        run(store.read(stored, 0, 10), disk)


def test_another_key_opens_nothing(disk: SimulatedDisk) -> None:
    for keys in (Keys(bytes(32)), Keys(label=b"other")):
        with pytest.raises(IntegrityError, match="another enclave's"):
            opened(disk, keys=keys)
    with pytest.raises(UsageError, match="32 bytes"):
        opened(disk, keys=Keys(b"short"))


def test_a_newer_version_keeps_the_files_and_leaves_nothing_for_the_older_one(disk: SimulatedDisk) -> None:
    """Its keys open what is sealed by either."""

    class Newer(Keys):
        def key(self, header: bytes) -> bytes:
            return KEYS.key(header) if header.startswith(b"header") else super().key(header)

    right = contents(disk)
    newer = Newer(bytes(32), b"newer")
    store = opened(disk, keys=newer)
    run(store.write(store.objects[2], 0, SECRET), disk)
    run(store.commit(), disk)
    with pytest.raises(IntegrityError, match="another enclave's"):
        opened(disk)
    again = opened(disk, keys=newer)
    assert run(again.read(again.objects[1], 0, 1 << 20), disk) == right[1][0]


def test_a_failed_sync_ends_all_writing(disk: SimulatedDisk) -> None:
    """What the kernel dropped after one cannot be known: fsync(2) after another would succeed."""
    store = opened(disk)
    run(store.write(store.objects[1], 0, b"x"), disk)
    disk.fails = {Sync}
    with pytest.raises(StorageError):
        run(store.commit(), disk)
    disk.fails = set()
    for steps in (store.commit(), store.write(store.objects[1], 0, b"y")):
        with pytest.raises(StorageError) as failed:
            run(steps, disk)
        assert failed.value.number == errno.EIO
    assert run(store.read(store.objects[2], 0, 5), disk) == SECRET[:5]


def test_what_does_not_fit_is_no_space_and_can_be_removed(disk: SimulatedDisk) -> None:
    store = Store(KEYS, 400 * BLOCK)
    run(store.open(), disk)
    stored = store.objects[1]
    run(store.write(stored, 0, b"x" * BLOCK * 200), disk)
    with pytest.raises(StorageError) as failed:
        run(store.write(stored, 200 * BLOCK, b"x" * BLOCK * 200), disk)
    assert failed.value.number == errno.ENOSPC
    run(store.commit(), disk)
    run(store.resize(stored, 0), disk)
    run(store.commit(), disk)
    run(store.write(stored, 0, b"x" * BLOCK * 200), disk)
    run(store.commit(), disk)
    assert len(disk.data) <= 400 * BLOCK


def test_files_in_many_pieces_are_bounded_in_memory_and_can_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "NODES", 20_000)
    monkeypatch.setattr(store_module, "HELD", 4 * BLOCK)
    disk = SimulatedDisk()
    store = Store(KEYS, 10_000 * BLOCK)
    run(store.open(), disk)
    made = store.create()
    store.number(made)
    far = (1 << 19) - 1  # a block at the end of what a node leads to
    pieces = 0
    with contextlib.suppress(StorageError):
        while pieces < 2000:
            run(store.write(made, (pieces << 19) + far, b"x"), disk)
            pieces += 1
    assert 50 < pieces < 200
    run(store.commit(), disk)
    again = Store(KEYS, 10_000 * BLOCK)
    run(again.open(), disk)
    stored = again.objects[1]
    assert run(again.read(stored, far, 10), disk) == b"x" + bytes(9)
    with pytest.raises(StorageError):
        run(again.write(stored, 0, b"x"), disk)
    run(again.resize(stored, 1 << 19), disk)
    run(again.write(stored, 0, b"x"), disk)
    run(again.commit(), disk)


def test_each_block_is_sealed_once_for_each_time_that_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = 0
    seal = BlockCipher.seal

    def counting(self, slot, block):
        nonlocal counted
        counted += 1
        return seal(self, slot, block)

    monkeypatch.setattr(BlockCipher, "seal", counting)
    disk = SimulatedDisk()
    store = opened(disk)
    stored = store.create()
    store.number(stored)
    blocks = 4096
    for start in range(0, blocks, 256):
        run(store.write(stored, start * BLOCK, bytes(256 * BLOCK)), disk)
    run(store.commit(), disk)
    assert counted <= blocks * 1.02
    requests = len(disk.requests)
    assert requests <= blocks // 256 * 2
    counted = 0
    run(store.write(stored, 5 * BLOCK, b"one page"), disk)
    run(store.commit(), disk)
    assert counted == 4  # the block, two nodes above it, the table
    assert len(disk.requests) - requests <= 6  # read; write; sync; superblock; sync; the second one


def test_without_aes_gcm_siv_nothing_is_opened_and_it_is_said_what_is_missing(
    disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_key: bytes) -> None:
        raise UnsupportedAlgorithm("AES-GCM-SIV is not supported by this version of OpenSSL")

    digest = "sha256:" + "1" * 64
    identity = EnclaveIdentity("sim", digest, "", 0, 0, debug=False, runtime=digest, machine="")
    keys = FileKeys(Sealing(identity, RootKeys(identity, SimulatedRoot())), "measurement")
    keys.check()
    monkeypatch.setattr(aead, "AESGCMSIV", missing)
    for fails in (keys.check, lambda: opened(disk)):
        with pytest.raises(PlatformError, match=r"needs OpenSSL 3\.2"):
            fails()
