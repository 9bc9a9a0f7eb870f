"""Unpacked layers of a zygote: each unpacked once, kept while it is used, gone when there is no room; unpackers that fail or say nonsense."""

from __future__ import annotations

import os
import select
import socket

import pytest

from adyton.errors import ImageError, PlatformError, ResourceLimitError
from adyton.runtime.process.layer_store import WANTED, LayerClient, LayerStore, failure
from adyton.runtime.process.unpacker import UNPACKED

SIZE = 1000
FIRST, SECOND, THIRD = (f"sha256:{letter * 64}" for letter in "abc")


class Unpackers:
    """Stand-ins that do what the test says."""

    def __init__(self):
        self.pipes = {}
        self.folders = {}
        self.started = []

    def __call__(self, digest, size, folder):
        reading, self.pipes[digest] = os.pipe()
        self.started.append(digest)
        self.folders[digest] = folder
        return 1000 + len(self.started), reading

    def says(self, digest, message):
        os.write(self.pipes[digest], message)

    def ends(self, digest):
        os.close(self.pipes.pop(digest))


@pytest.fixture
def unpackers():
    found = Unpackers()
    yield found
    for pipe in found.pipes.values():
        os.close(pipe)


class Zygote:
    """A store with room for two layers, its poller, and supervisors."""

    def __init__(self, folder, unpackers):
        self.poller = select.poll()
        self.store = LayerStore(str(folder), 2 * 2 * SIZE, unpackers, self.poller)
        self.sockets = {}

    def asks(self, pid, digest, size=SIZE):
        """Have a supervisor ask; it may have asked before."""
        if pid not in self.sockets:
            self.sockets[pid], theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.store.join(pid, theirs)
        self.sockets[pid].send(WANTED.pack(digest.encode(), size))
        self.run()

    def answer(self, pid):
        """What it has been answered; None: nothing yet."""
        self.run()
        try:
            return self.sockets[pid].recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def run(self):
        while events := self.poller.poll(0):
            for descriptor, _ in events:
                assert self.store.ready(descriptor)

    def close(self):
        for sock in self.sockets.values():
            sock.close()
        self.run()
        self.store.abandon()


@pytest.fixture
def zygote(tmp_path, unpackers):
    folder = tmp_path / "layers"
    folder.mkdir()
    found = Zygote(folder, unpackers)
    yield found
    found.close()


def ready(unpackers, digest):
    return b"ready:" + unpackers.folders[digest].encode()


def unpacked(zygote, unpackers, pid, digest):
    zygote.asks(pid, digest)
    unpackers.says(digest, UNPACKED)
    assert zygote.answer(pid) == ready(unpackers, digest)


def test_a_layer_is_unpacked_once_for_all_who_want_it(zygote, unpackers):
    zygote.asks(1, FIRST)
    zygote.asks(2, FIRST)
    assert zygote.answer(1) is None
    unpackers.says(FIRST, UNPACKED)
    assert zygote.answer(1) == zygote.answer(2) == ready(unpackers, FIRST)
    unpackers.ends(FIRST)
    zygote.asks(3, FIRST)
    assert zygote.answer(3) == ready(unpackers, FIRST)
    assert unpackers.started == [FIRST]


def test_what_failed_is_told_to_all_and_tried_again_by_the_next(zygote, unpackers):
    zygote.asks(1, FIRST)
    zygote.asks(2, FIRST)
    unpackers.says(FIRST, failure(ImageError("it is damaged")))
    assert zygote.answer(1) == zygote.answer(2) == b"failed:ImageError\nit is damaged"
    unpackers.ends(FIRST)
    assert not os.path.exists(unpackers.folders[FIRST])
    unpacked(zygote, unpackers, 3, FIRST)
    assert unpackers.started == [FIRST, FIRST]


def test_an_unpacker_that_was_killed_is_said(zygote, unpackers):
    zygote.asks(1, FIRST)
    unpackers.ends(FIRST)
    assert zygote.answer(1).startswith(b"failed:PlatformError\nthe process that unpacked")


def test_one_that_was_killed_while_it_compiled_is_no_loss(zygote, unpackers):
    unpacked(zygote, unpackers, 1, FIRST)
    unpackers.ends(FIRST)
    zygote.asks(2, FIRST)
    assert zygote.answer(2) == ready(unpackers, FIRST)


def test_what_nobody_uses_makes_room_least_recently_used_first(zygote, unpackers):
    unpacked(zygote, unpackers, 1, FIRST)
    unpacked(zygote, unpackers, 2, SECOND)
    zygote.asks(3, FIRST)
    for pid in (1, 2, 3):
        zygote.store.ended(pid)
    unpacked(zygote, unpackers, 4, THIRD)
    assert not os.path.exists(unpackers.folders[SECOND])
    assert os.path.exists(unpackers.folders[FIRST])


def test_what_an_enclave_uses_stays_and_who_finds_no_room_is_told(zygote, unpackers):
    unpacked(zygote, unpackers, 1, FIRST)
    unpacked(zygote, unpackers, 2, SECOND)
    zygote.asks(3, THIRD)
    assert zygote.answer(3).startswith(b"failed:ResourceLimitError\n")
    zygote.asks(3, THIRD, 1 << 62)
    assert zygote.answer(3).startswith(b"failed:ResourceLimitError\n")
    assert os.path.exists(unpackers.folders[FIRST])
    assert os.path.exists(unpackers.folders[SECOND])
    zygote.store.ended(1)
    unpacked(zygote, unpackers, 3, THIRD)


def test_a_layer_under_way_is_not_removed_though_its_supervisor_ended(zygote, unpackers):
    zygote.asks(1, FIRST)
    zygote.sockets.pop(1).close()
    zygote.run()
    zygote.store.ended(1)
    unpacked(zygote, unpackers, 2, SECOND)
    zygote.asks(3, THIRD)
    assert zygote.answer(3).startswith(b"failed:ResourceLimitError\n")
    unpackers.says(FIRST, UNPACKED)
    zygote.run()
    unpacked(zygote, unpackers, 3, THIRD)
    assert not os.path.exists(unpackers.folders[FIRST])


def test_who_has_ended_uses_nothing_whatever_it_asked_last(zygote, unpackers):
    unpacked(zygote, unpackers, 1, FIRST)
    zygote.asks(2, SECOND)
    zygote.sockets[1].send(WANTED.pack(FIRST.encode(), SIZE))
    zygote.store.ended(1)
    unpackers.says(SECOND, UNPACKED)
    unpacked(zygote, unpackers, 3, THIRD)
    assert not os.path.exists(unpackers.folders[FIRST])


def test_an_event_of_a_closed_descriptor_whose_number_is_another_s_now_is_ignored(zygote, unpackers):
    zygote.asks(1, FIRST)
    for descriptor in (*zygote.store._pipes, *zygote.store._askers):
        assert zygote.store.ready(descriptor)  # nothing is there to read
    assert zygote.answer(1) is None
    assert not zygote.store.ready(9999)


@pytest.mark.parametrize("digest", ["", "sha256:", "../../../etc", "sha256:" + "A" * 64, "sha512:" + "a" * 64])
def test_what_is_no_digest_is_refused(zygote, unpackers, digest):
    zygote.asks(1, digest)
    assert zygote.answer(1).startswith(b"failed:ImageError\n")
    assert not unpackers.started


def test_another_size_is_refused(zygote, unpackers):
    unpacked(zygote, unpackers, 1, FIRST)
    zygote.asks(2, FIRST, SIZE + 1)
    assert zygote.answer(2).startswith(b"failed:ImageError\n")


@pytest.mark.parametrize("message", [b"x", bytes(78), bytes(80), b"\xff" * 79])
def test_nonsense_is_refused(zygote, unpackers, message):
    zygote.asks(1, FIRST)
    zygote.sockets[1].send(message)
    zygote.run()
    assert zygote.answer(1).startswith(b"failed:")


def test_no_process_for_an_unpacker_is_said(tmp_path, zygote):
    def unpack(digest, size, folder):
        raise OSError(11, "no process")

    zygote.store._unpack = unpack
    zygote.asks(1, FIRST)
    assert zygote.answer(1).startswith(b"failed:PlatformError\n")
    assert not os.listdir(tmp_path / "layers")


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (failure(ImageError("x")), ImageError),
        (failure(ResourceLimitError("x")), ResourceLimitError),
        (failure(OSError(1, "x")), PlatformError),
        (b"failed:system\nx", PlatformError),
        (b"", PlatformError),
    ],
)
def test_a_supervisor_raises_what_it_is_told(message, kind):
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        theirs.send(message)
        client = LayerClient(mine)
        with pytest.raises(kind):
            client.unpacked(FIRST, SIZE)
        client.close()
