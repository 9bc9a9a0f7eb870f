"""Files that are kept for an enclave: other programs' locks are kept off, its own handles share."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from fake_kernel import raises

from adyton.hostcall.client.holds import Holds


@pytest.fixture
def holds():
    holds = Holds()
    yield holds
    holds.close()


@pytest.fixture
def opened(tmp_path: Path):
    """Opens the file anew, as another program would."""
    (tmp_path / "f").write_bytes(b"data")
    descriptors = []

    def open_file(flags: int = os.O_RDWR) -> int:
        descriptors.append(os.open(tmp_path / "f", flags))
        return descriptors[-1]

    yield open_file
    for each in descriptors:
        os.close(each)


def locks(descriptor: int) -> list[bool]:
    """Whether flock, and fcntl's lock of an open file, can be had."""
    got = []
    for attempt in (
        lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB),
        lambda: fcntl.fcntl(
            descriptor, 37, bytes.fromhex("0100" + "00" * 30)
        ),  # F_OFD_SETLK of a struct flock with F_WRLCK
    ):
        try:
            attempt()
        except BlockingIOError:
            got.append(False)
        else:
            got.append(True)
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    fcntl.fcntl(descriptor, 37, bytes.fromhex("0200" + "00" * 30))
    return got


def test_a_held_file_cannot_be_locked_by_others_until_the_last_handle_is_closed(holds: Holds, opened) -> None:
    holds.hold(1, opened())
    holds.hold(2, opened())
    assert locks(opened()) == [False, False]
    holds.release(1)
    assert locks(opened()) == [False, False]
    holds.release(2)
    assert locks(opened()) == [True, True]


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_a_file_that_another_program_has_locked_cannot_be_held(holds: Holds, opened, kind: str) -> None:
    other = opened()
    if kind == "flock":
        fcntl.flock(other, fcntl.LOCK_SH)
    else:
        fcntl.fcntl(other, 37, bytes.fromhex("0000" + "00" * 30))
    with raises(errno.EBUSY):
        holds.hold(1, opened())
    holds.release(1)


def test_a_file_that_is_only_read_is_shared_with_readers_until_it_is_written(holds: Holds, opened) -> None:
    holds.hold(1, opened(os.O_RDONLY))
    reader = opened(os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(reader, fcntl.LOCK_UN)
    assert locks(opened()) == [False, False]
    holds.hold(2, opened())
    with pytest.raises(BlockingIOError):
        fcntl.flock(reader, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_all_is_given_back_at_the_end(holds: Holds, opened) -> None:
    holds.hold(1, opened())
    holds.close()
    assert locks(opened()) == [True, True]
