"""Who is told of what: watches of nodes, what the client is asked to follow, and the queues of events."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Generator
from typing import Any

import pytest
from fake_client import FakeClient
from fake_kernel import FakeKernel, raises
from hypothesis import given
from hypothesis import strategies as st

from adyton.hostcall import abi
from adyton.hostcall.events import Event, Happened, possible
from adyton.runtime.process.supervisor import calls, files
from adyton.runtime.process.supervisor.fuse_abi import FileError
from adyton.runtime.process.supervisor.watching import instances
from adyton.runtime.process.supervisor.watching.instances import Budget, Instance, Mask, check_mask, pack

ALL = instances.EVENTS


class Client(FakeClient):
    """`follows`: what it was asked to tell of; it answers `answer`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.follows: list[tuple[str, str]] = []
        self.answer: abi.Result = abi.Done()

    def execute(self, request: abi.Request) -> abi.Result:
        if isinstance(request, abi.Unfollow):
            if isinstance(self.answer, abi.Done):
                self.follows.remove((request.directory, request.name))
            return abi.Done()
        if isinstance(request, abi.Follow):
            if isinstance(self.answer, abi.Done) and (request.directory, request.name) not in self.follows:
                self.follows.append((request.directory, request.name))
            return self.answer
        return super().execute(request)


class Program:
    """What a program with one inotify descriptor does: `watch` and `read`."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.watching = kernel.server.watching
        self.instance = self.watching.open()
        self.answers: list[tuple[int | None, int]] = []

    def begin(self, path: str, mask: int = ALL, *, directory: str = "/", **ways: bool) -> None:
        server = self.kernel.server

        def steps() -> Generator[Any, Any, int]:
            follow, only = ways.get("follow", True), ways.get("only_directory", False)
            node = yield from server.walking.find(directory, path.encode(), follow=follow, only_directory=only)
            try:
                return (yield from self.watching.watched(self.instance, node, mask))
            except OSError as error:
                raise FileError(error.errno or 0) from None
            finally:
                server.release(node)

        self.kernel.apply(server.begin(steps(), lambda *answer: self.answers.append(answer)))

    def watch(self, path: str, mask: int = ALL, **ways: Any) -> int:
        self.begin(path, mask, **ways)
        self.kernel.run()
        number, error = self.answers.pop()
        if error:
            raise OSError(error, os.strerror(error))
        assert number is not None
        return number

    def unwatch(self, number: int) -> None:
        self.watching.unwatch(self.instance, number)
        self.kernel.apply(self.kernel.server.flush())
        self.kernel.run()

    def close(self) -> None:
        self.watching.close(self.instance)
        self.kernel.apply(self.kernel.server.flush())
        self.kernel.run()

    def read(self) -> list[tuple[int, Mask, str]]:
        """Watch, mask and name of all events."""
        found = []
        while self.instance.queue:
            event = self.instance.queue[0]
            self.instance.taken()
            watch, mask, _, length = struct.unpack_from("=iIII", event)
            assert len(event) == 16 + length
            found.append((watch, Mask(mask), event[16:].rstrip(b"\0").decode()))
        return found

    def told(self, *events: Event) -> None:
        """The client tells of what others did."""
        self.kernel.apply(self.kernel.server.happened(Happened(list(events))))
        self.kernel.run()


@pytest.fixture
def program() -> Program:
    client = Client({"/work/w": "write", "/work/r": "read", "/work/alone": "read"})
    client.file("/work/w/f", b"content")
    client.file("/work/w/d/in", b"within")
    client.file("/work/r/f", b"x")
    client.file("/work/alone", b"x")
    client.file("/secret/f", b"x")
    return Program(FakeKernel.loaded(client))


def follows(program: Program) -> list[tuple[str, str]]:
    client = program.kernel.client
    assert isinstance(client, Client)
    return sorted(client.follows)


def test_what_is_watched_is_followed_once_and_no_longer_than_it_is(program: Program) -> None:
    first = program.watch("/work/w")
    assert program.watch("/work/w", Mask.CREATE) == first
    other = Program(program.kernel)
    assert other.watch("/work/w") == 1  # each numbers its own
    program.watch("/work/w/f")
    program.watch("/work/alone")
    assert follows(program) == [("/work", "alone"), ("/work/w", ""), ("/work/w", "f")]
    program.unwatch(first)
    assert ("/work/w", "") in follows(program)
    other.close()
    assert follows(program) == [("/work", "alone"), ("/work/w", "f")]
    program.close()
    assert follows(program) == []
    assert not program.watching.active
    assert program.watching.budget.watches == program.watching.budget.queued == 0


def test_a_client_that_cannot_follow_makes_no_watch_fail_but_for_want_of_room(program: Program) -> None:
    assert isinstance(program.kernel.client, Client)
    program.kernel.client.answer = abi.Failed("EOPNOTSUPP")
    assert program.watch("/work/w") == 1
    program.kernel.write("/work/w/new", b"x")
    assert (1, Mask.CREATE, "new") in program.read()
    program.kernel.client.answer = abi.Failed("ENOSPC")
    with raises(errno.ENOSPC):
        program.watch("/work/w/d")
    with raises(errno.ENOENT):
        program.watch("/work/w/nothing")


def test_a_watch_that_is_made_while_another_ends_is_followed(program: Program) -> None:
    first = program.watch("/work/w/d")
    other = Program(program.kernel)
    other.begin("/work/w/d")
    program.unwatch(first)
    program.kernel.run()
    assert other.answers == [(1, 0)]
    assert follows(program) == [("/work/w/d", "")]


def test_a_descriptor_that_is_closed_while_it_waits_leaves_nothing(program: Program) -> None:
    program.begin("/work/w/d")
    program.watching.close(program.instance)
    program.kernel.run()
    assert program.answers == [(None, errno.EBADF)]
    assert follows(program) == []
    assert not program.watching.active


def test_calls_that_nobody_waits_for_any_more_are_bounded(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BEGUN", 3)
    for _ in range(5):
        program.begin("/work/w/d")
    assert program.answers == [(None, errno.ENOMEM)] * 2
    program.kernel.run()
    assert program.answers[2:] == [(1, 0)] * 3
    assert program.watch("/work/w") == 2


def test_what_the_enclave_moves_is_followed_by_its_new_name(program: Program) -> None:
    for path in ("/work/w/d", "/work/w/d/in", "/work/w/f"):
        program.watch(path)
    program.kernel.rename("/work/w/d", "/work/w/e")
    assert follows(program) == [("/work/w", "f"), ("/work/w/e", ""), ("/work/w/e", "in")]
    program.kernel.rename("/work/w/f", "/work/w/e/f")
    assert follows(program) == [("/work/w/e", ""), ("/work/w/e", "f"), ("/work/w/e", "in")]
    program.read()
    program.told(Event("/work/w/e", "f", "modified"))
    assert program.read() == [(1, Mask.MODIFY, "f"), (3, Mask.MODIFY, "")]


def test_many_that_end_or_move_at_once_are_told_to_the_client_in_good_time(program: Program) -> None:
    for number in range(30):
        program.kernel.client.directory(f"/work/w/d/{number}")
        program.watch(f"/work/w/d/{number}")
    before, calls.MAX_UNDER_WAY = calls.MAX_UNDER_WAY, 10
    try:
        program.kernel.rename("/work/w/d", "/work/w/e")
        program.kernel.run()
        assert follows(program) == sorted((f"/work/w/e/{number}", "") for number in range(30))
        program.watching.close(program.instance)
        program.kernel.apply(program.kernel.server.flush())
        assert len(program.kernel.asks) == 10
        other = Program(program.kernel)
        other.begin("/work/w/e/29")  # whose end is not told yet
        program.kernel.run()
        assert other.answers == [(1, 0)]
        assert follows(program) == [("/work/w/e/29", "")]
    finally:
        calls.MAX_UNDER_WAY = before


WALKS = {
    "/work/w/../w/./d//in": 0,
    "/work/nothing/../w": errno.EACCES,
    "/work/w/nothing": errno.ENOENT,
    "/work/w/f/": errno.ENOTDIR,
    "/work/w/f/x": errno.ENOTDIR,
    "/work/w/f/..": errno.ENOTDIR,
    "": errno.ENOENT,
    "/work": errno.EACCES,
    "/": errno.EACCES,
    "/usr": errno.EACCES,
    "/usr/lib": errno.EACCES,
    "/tmp": errno.EACCES,
    "/secret/f": errno.EACCES,
    "/work/w/" + "x" * 300: errno.ENAMETOOLONG,
    "/work/w/here": 0,
    "/work/w/round": errno.ELOOP,
    "/work/w/out": errno.EACCES,
    "/work/w/own": errno.EACCES,
}


@pytest.mark.parametrize(("path", "error"), WALKS.items(), ids=[path[:30] or "nothing" for path in WALKS])
def test_a_path_is_found_as_the_kernel_would(program: Program, path: str, error: int) -> None:
    for name, target in {"here": "../w/d/in", "round": "round", "out": "/secret/f", "own": "/usr"}.items():
        program.kernel.client.things[f"/work/w/{name}"] = _link(program, target)
    if not error:
        assert program.watch(path) == 1
        return
    with raises(error):
        program.watch(path)
    assert not program.watching.active
    assert follows(program) == []


def _link(program: Program, target: str) -> Any:
    client = program.kernel.client
    thing = client.file("/work/w/made")
    del client.things["/work/w/made"]
    thing.kind, thing.target = "symlink", target
    return thing


def test_a_denied_path_is_told_to_the_client_whole(program: Program) -> None:
    with raises(errno.EACCES):
        program.watch("../secret/./deep/f", directory="/work")
    assert program.kernel.client.denied == [("/secret/deep/f", "read")]


def test_a_link_itself_and_only_directories(program: Program) -> None:
    program.kernel.client.things["/work/w/here"] = _link(program, "/work/w/f")
    program.watch("/work/w/here", follow=False)
    assert follows(program) == [("/work/w", "here")]
    with raises(errno.ENOTDIR):
        program.watch("/work/w/here", only_directory=True)


def test_nodes_are_kept_while_they_are_watched(program: Program) -> None:
    entry = program.kernel.lookup("/work/w/f")
    number = program.watch("/work/w/f")
    program.kernel.forget(*[entry.node])
    assert program.kernel.lookup("/work/w/f").node == entry.node
    before = len(program.kernel.server._view.tree)
    program.unwatch(number)
    program.kernel.forget(entry.node)
    assert len(program.kernel.server._view.tree) <= before


def test_what_others_do_reaches_directory_and_file(program: Program) -> None:
    directory, file = program.watch("/work/w"), program.watch("/work/w/f")
    program.told(
        Event("/work/w", "f", "modified"),
        Event("/work/w", "new", "created", is_directory=True),
        Event("/work/w", "f", "moved-from", cookie=7),
        Event("/work/w", "g", "moved-to", cookie=7),
        Event("/work/w", "f", "created"),
        Event("/elsewhere", "f", "removed"),
    )
    assert program.read() == [
        (directory, Mask.MODIFY, "f"),
        (file, Mask.MODIFY, ""),
        (directory, Mask.CREATE | Mask.ISDIR, "new"),
        (directory, Mask.MOVED_FROM, "f"),
        (file, Mask.MOVE_SELF, ""),
        (directory, Mask.MOVED_TO, "g"),
        (directory, Mask.CREATE, "f"),
    ]
    assert follows(program) == [("/work/w", "")]


def test_a_file_that_others_remove_or_replace_is_watched_no_more(program: Program) -> None:
    for kind, path in (("removed", "/work/w/f"), ("moved-to", "/work/w/d/in")):
        number = program.watch(path)
        program.told(Event(*os.path.split(path), kind))
        assert [mask for _, mask, _ in program.read()] == [Mask.ATTRIB, Mask.DELETE_SELF, Mask.IGNORED]
        with raises(errno.EINVAL):
            program.unwatch(number)
    assert follows(program) == []


def test_a_directory_that_others_remove_or_move_is_watched_no_more(program: Program) -> None:
    program.watch("/work/w/d")
    program.told(Event("/work/w/d", "", "attributes"), Event("/work/w/d", "", "moved-from"))
    assert [mask for _, mask, _ in program.read()] == [Mask.ATTRIB | Mask.ISDIR, Mask.MOVE_SELF, Mask.IGNORED]
    program.watch("/work/w")
    program.told(Event("/work/w", "", "removed"), Event("/work/w", "x", "created"))
    assert [mask for _, mask, _ in program.read()] == [Mask.DELETE_SELF, Mask.IGNORED]


def test_what_is_lost_is_said_to_all(program: Program) -> None:
    other = Program(program.kernel)
    program.told(Event("/", "", "lost"), Event("/", "", "lost"))
    assert program.read() == other.read() == [(-1, Mask.OVERFLOW, "")]


def test_a_client_cannot_tell_of_names_that_there_are_not(program: Program) -> None:
    program.watch("/work/w")
    names = ("../x", "..", ".", "a/b", "a\0b", "é" * 200)
    program.told(*(Event("/work/w", name, "created") for name in names))
    assert program.read() == []


def test_once_is_once_and_masks_hold(program: Program) -> None:
    once = program.watch("/work/w", Mask.CREATE | Mask.ONESHOT)
    for name in ("a", "b"):
        program.kernel.mkdir(f"/work/w/{name}")
    assert program.read() == [(once, Mask.CREATE | Mask.ISDIR, "a"), (once, Mask.IGNORED, "")]
    again = program.watch("/work/w", Mask.CREATE)
    assert program.watch("/work/w", Mask.DELETE | Mask.MASK_ADD) == again != once
    with raises(errno.EEXIST):
        program.watch("/work/w", Mask.DELETE | Mask.MASK_CREATE)
    program.kernel.mkdir("/work/w/c")
    program.kernel.rmdir("/work/w/c")
    assert [mask for _, mask, _ in program.read()] == [Mask.CREATE | Mask.ISDIR, Mask.DELETE | Mask.ISDIR]


def test_watches_are_bounded_for_all_instances_together(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "MAX_WATCHES", 2)
    other = Program(program.kernel)
    program.watch("/work/w")
    other.watch("/work/w")
    with raises(errno.ENOSPC):
        program.watch("/work/r")
    other.close()
    program.watch("/work/r")


# -- queues -----------------------------------------------------------------------------------------------------------


def test_equal_events_are_one_until_they_are_read() -> None:
    unread = False
    instance: Instance[str] = Instance(Budget(), lambda: unread)
    watch = instance.add("x", ALL)
    for _ in range(3):
        instance.tell(watch, Mask.MODIFY)
    assert len(instance.queue) == 1
    instance.taken()
    unread = True
    instance.tell(watch, Mask.MODIFY)
    assert not instance.queue
    unread = False
    instance.tell(watch, Mask.MODIFY)
    instance.tell(watch, Mask.ATTRIB)
    instance.tell(watch, Mask.MODIFY)
    assert len(instance.queue) == 3


@given(st.lists(st.sampled_from(["tell", "take", "lost", "watch", "remove"]), max_size=60))
def test_a_queue_is_bounded_and_says_once_that_something_is_missing(deeds: list[str]) -> None:
    budget = Budget()
    before, instances.MAX_QUEUED = instances.MAX_QUEUED, 4
    try:
        instance: Instance[int] = Instance(budget)
        for number, deed in enumerate(deeds):
            if deed == "take" and instance.queue:
                instance.taken()
            elif deed == "lost":
                instance.lost()
            elif deed == "watch":
                instance.add(number, ALL)
            elif deed == "remove" and instance.watches:
                instance.remove(next(iter(instance.watches.values())))
            elif deed == "tell" and instance.watches:
                instance.tell(next(iter(instance.watches.values())), Mask.CREATE, 0, str(number).encode())
            assert len(instance.queue) <= 5
            assert budget.queued == len(instance.queue)
            assert budget.watches == len(instance.watches)
            assert sum(struct.unpack_from("=i", event)[0] == -1 for event in instance.queue) <= 1
    finally:
        instances.MAX_QUEUED = before
    instance.close()
    assert budget.queued == budget.watches == 0


@given(st.binary(max_size=255).filter(lambda name: b"\0" not in name))
def test_an_event_is_padded_as_the_kernels(name: bytes) -> None:
    event = pack(3, Mask.CREATE, 9, name)
    watch, mask, cookie, length = struct.unpack_from("=iIII", event)
    assert (watch, mask, cookie, len(event)) == (3, Mask.CREATE, 9, 16 + length)
    assert event[16:].rstrip(b"\0") == name.rstrip(b"\0")
    assert length % 16 == 0
    assert length > len(name) if name else length == 0
    assert length <= 256


@pytest.mark.parametrize("mask", [0, 0x1000, 0x1000 | ALL, Mask.MASK_ADD | Mask.MASK_CREATE | ALL])
def test_masks_that_mean_nothing_are_refused(mask: int) -> None:
    with raises(errno.EINVAL):
        check_mask(mask)
    check_mask(ALL | Mask.ONESHOT | Mask.DONT_FOLLOW)


def test_events_of_the_client_are_those_that_a_directory_can_have() -> None:
    good, bad = Event("/a", "x", "created"), Event("/a", "x/y", "created")
    assert possible(Happened([good, bad, Event("/a", "", "removed")])) == [good, Event("/a", "", "removed")]
