"""Changes of the client's files: other programs' are told, once; the enclave's own are not."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_kernel import raises

from adyton.hostcall.client import watches as module
from adyton.hostcall.client.watches import Watches


class Place:
    """A watched directory: `path` here, "/there" as the enclave spells it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.called = threading.Event()
        self.watches = Watches(self.called.set, lambda path: os.open(path, os.O_PATH | os.O_DIRECTORY))

    def watch(self, name: str = "", directory: str = "") -> None:
        path = self.path / directory if directory else self.path
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
        try:
            self.watches.watch(descriptor, str(path), f"/there/{directory}".rstrip("/"), name)
        finally:
            os.close(descriptor)

    def own(self, name: str, data: bytes) -> None:
        with self.watches.changing():
            (self.path / name).write_bytes(data)
            self.watches.made_at(str(self.path / name))

    def remove(self, name: str) -> None:
        with self.watches.changing():
            os.unlink(self.path / name)
            self.watches.removed_at(str(self.path / name))


@pytest.fixture
def place(tmp_path: Path):
    place = Place(tmp_path)
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "sub").mkdir()
    yield place
    place.watches.close()


def other(*arguments: str) -> None:
    """Another program at work."""
    code = "import os, sys; op, *rest = sys.argv[1:]; getattr(os, op)(*rest) if op != 'write' else open(rest[0], 'w').write(rest[1])"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def test_what_others_change_is_told_and_the_owner_is_called(place: Place) -> None:
    place.watch()
    other("write", f"{place.path}/new", "data")
    assert place.called.wait(30)
    assert ("/there", "new") in place.watches.take()
    other("rename", f"{place.path}/old", f"{place.path}/moved")
    other("unlink", f"{place.path}/new")
    assert set(place.watches.take()) == {
        ("/there", "old"),
        ("/there", "moved"),
    }  # new was told, and not looked at since


def test_what_the_enclave_changes_is_not_told(place: Place) -> None:
    place.watch()
    place.own("mine", b"1")
    place.own("mine", b"22")
    place.own("old", b"333")
    place.remove("old")
    with place.watches.changing():
        os.rename(place.path / "mine", place.path / "yours")
        place.watches.removed_at(str(place.path / "mine"))
        place.watches.made_at(str(place.path / "yours"))
    assert place.watches.take() == []


def test_a_change_after_the_enclaves_own_is_told(place: Place) -> None:
    place.watch()
    place.own("mine", b"1")
    assert place.watches.take() == []
    os.utime(place.path / "mine", ns=(1, 1))
    assert place.watches.take() == [("/there", "mine")]
    place.own("gone", b"1")
    place.remove("gone")
    (place.path / "gone").write_bytes(b"again")
    assert place.watches.take() == [("/there", "gone")]


def test_a_change_is_told_once_until_the_enclave_looks_again(place: Place) -> None:
    place.watch()
    for _ in range(3):
        (place.path / "old").write_bytes(b"x")
        told = place.watches.take()
    assert told == []
    place.watches.looked(str(place.path / "old"))
    (place.path / "old").write_bytes(b"x")
    assert place.watches.take() == [("/there", "old")]
    place.watches.listed(str(place.path))
    (place.path / "old").write_bytes(b"x")
    assert place.watches.take() == [("/there", "old")]


def test_what_others_remove_where_the_enclave_removed_something_before_is_told_if_it_has_looked_since(
    place: Place,
) -> None:
    place.watch()
    path = place.path / "old"
    for look, at in ((place.watches.looked, path), (place.watches.listed, place.path)):
        place.remove("old")
        assert place.watches.take() == []
        path.write_bytes(b"another's")
        look(str(at))  # and finds it
        path.unlink()
        assert place.watches.take() == [("/there", "old")]
        place.own("old", b"once more")
        assert place.watches.take() == []


def test_what_others_do_right_after_the_enclave_is_not_taken_for_its_own(place: Place) -> None:
    place.watch()
    path, new = place.path / "old", place.path / "new"
    with place.watches.changing():
        path.unlink()
        path.write_bytes(b"another's")
        place.watches.removed_at(str(path))
    assert place.watches.take() == [("/there", "old")]
    with place.watches.changing():
        new.write_bytes(b"the enclave's")
        new.unlink()
        place.watches.made_at(str(new))
    assert place.watches.take() == [("/there", "new")]
    place.own("moved", b"the enclave's")
    with place.watches.changing():
        moved = os.lstat(place.path / "moved")
        os.rename(place.path / "moved", place.path / "target")
        other("write", f"{place.path}/replacing", "another's")
        os.rename(place.path / "replacing", place.path / "target")
        place.watches.removed_at(str(place.path / "moved"))
        place.watches.made_at(str(place.path / "target"), (moved.st_dev, moved.st_ino))
    assert ("/there", "target") in place.watches.take()


def test_a_promise_of_one_name_tells_of_no_other(place: Place) -> None:
    place.watch("old")
    (place.path / "new").write_bytes(b"x")
    assert place.watches.take() == []
    (place.path / "old").write_bytes(b"x")
    assert place.watches.take() == [("/there", "old")]


def test_each_spelling_is_told(place: Place) -> None:
    place.watch()
    descriptor = os.open(place.path, os.O_PATH | os.O_DIRECTORY)
    place.watches.watch(descriptor, str(place.path), "/link", "")
    os.close(descriptor)
    (place.path / "old").write_bytes(b"x")
    assert set(place.watches.take()) == {("/there", "old"), ("/link", "old")}


def test_a_directory_that_goes_ends_its_promise(place: Place) -> None:
    place.watch()
    place.watch(directory="sub")
    os.rmdir(place.path / "sub")
    assert {("/there/sub", ""), ("/there", "sub")} <= set(place.watches.take())
    place.watch()  # the others go on
    (place.path / "old").write_bytes(b"x")
    assert place.watches.take() == [("/there", "old")]


def test_a_directorys_own_mode_is_told_by_its_name(place: Place) -> None:
    place.watch(directory="sub")
    os.chmod(place.path / "sub", 0o700)
    assert place.watches.take() == [("/there", "sub")]


def test_changes_that_the_kernel_lost_end_all_promises(place: Place) -> None:
    place.watch()
    place.watch(directory="sub")
    place.watches._read(struct.pack("=iIII", -1, module._OVERFLOW, 0, 0))
    assert set(place.watches.take()) == {("/there", ""), ("/there/sub", "")}
    assert not place.watches.watching


def test_what_is_given_up_is_not_told(place: Place) -> None:
    place.watch()
    place.watches.unwatch(str(place.path), "/there")
    (place.path / "old").write_bytes(b"x")
    assert place.watches.take() == []
    place.watches.unwatch("/nowhere", "/nowhere")


def test_file_systems_that_other_machines_change_are_not_promised(place: Place, monkeypatch) -> None:
    monkeypatch.setattr(module, "file_system", lambda _descriptor: 0x6969)  # NFS
    with raises(errno.EOPNOTSUPP):
        place.watch()


def test_promises_are_bounded(place: Place, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_WATCHES", 1)
    place.watch()
    place.watch("old")
    with raises(errno.ENOSPC):
        place.watch(directory="sub")


def test_nothing_is_promised_after_the_end(place: Place) -> None:
    place.watch()
    place.watches.close()
    with raises(errno.EBADF):
        place.watch()
    assert place.watches.take() == []
    for thread in threading.enumerate():
        if thread.name == "adyton-watch":
            thread.join(30)
            assert not thread.is_alive()


def test_a_change_right_before_the_enclaves_own_is_told(place: Place) -> None:
    place.watch()
    other, own = (os.open(place.path / "old", os.O_WRONLY) for _ in range(2))
    os.pwrite(other, b"new", 500)
    with place.watches.changing():
        os.pwrite(own, b"A", 0)
        place.watches.made(os.fstat(own))
    os.close(other)
    os.close(own)
    assert place.watches.take() == [("/there", "old")]


def test_what_the_enclave_removed_unseen_is_told_when_it_is_made_again(place: Place) -> None:
    place.watch()
    (place.path / "old").write_bytes(b"1")
    assert place.watches.take()
    with place.watches.changing():
        os.unlink(place.path / "old")
        place.watches.made_at(str(place.path / "old"))
    (place.path / "old").write_bytes(b"2")
    assert place.watches.take() == [("/there", "old")]


def test_promises_below_what_the_enclave_renames_end(place: Place) -> None:
    place.watch(directory="sub")
    with place.watches.changing():
        os.rename(place.path / "sub", place.path / "other")
        place.watches.moved(str(place.path / "sub"))
    assert ("/there/sub", "") in place.watches.take()
    assert not place.watches.watching


def test_what_others_do_beside_a_slow_change_is_told_after_it_and_nothing_else_waits(place: Place) -> None:
    place.watch()
    begun, ends = threading.Event(), threading.Event()

    def change() -> None:
        with place.watches.changing():
            begun.set()
            assert ends.wait(30)
            (place.path / "own").write_bytes(b"own")
            place.watches.made_at(str(place.path / "own"))

    changing = threading.Thread(target=change)
    changing.start()
    assert begun.wait(30)
    other("write", f"{place.path}/new", "data")
    assert place.watches.take() == []
    assert place.watches.take_events() == []
    assert not place.called.is_set()  # as there is nothing to take
    ends.set()
    changing.join()
    assert place.called.wait(30)
    assert place.watches.take() == [("/there", "new")]
