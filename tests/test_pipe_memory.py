"""How many of the descriptors of processes may be pipes: each counts once, what keeps no memory not at all."""

from __future__ import annotations

import os

import pytest

from adyton.runtime.process.supervisor import pipe_memory
from adyton.runtime.process.supervisor.pipe_memory import AGAIN_SECONDS, FEW, Pipes


class Proc:
    def __init__(self, folder):
        self.folder = folder
        self.clock = 0.0
        self.pipes = Pipes(str(folder), lambda: self.clock)

    def has(self, process, *links):
        directory = self.folder / process / "fd"
        directory.mkdir(parents=True, exist_ok=True)
        for each in directory.iterdir():
            each.unlink()
        for number, link in enumerate(links):
            (directory / str(number)).symlink_to(link)


@pytest.fixture
def proc(tmp_path):
    return Proc(tmp_path)


SOCKETS = [f"socket:[{number}]" for number in range(600)]


def test_few_descriptors_are_not_looked_at(proc):
    proc.has("1", *SOCKETS[:FEW])
    assert proc.pipes.among(FEW, ["1"]) == (FEW, FEW)


def test_a_pipe_counts_once_and_what_is_none_does_not(proc):
    named = ["/tmp/fifo (deleted)"] * 2
    for process in ("1", "2", "3"):
        proc.has(process, "pipe:[1]", "pipe:[1]", "pipe:[2]", "anon_inode:[eventpoll]", *named, *SOCKETS)
    assert proc.pipes.among(3 * 606, ["1", "2", "3", "ended"]) == (8, 8)


def test_until_they_are_counted_again_what_is_new_may_be_pipes_but_is_not_sure_to(proc):
    proc.has("1", *SOCKETS, "pipe:[1]")
    assert proc.pipes.among(601, ["1"]) == (1, 1)
    proc.has("1", *[f"pipe:[{number}]" for number in range(700)])
    assert proc.pipes.among(700, ["1"]) == (1, 100)
    proc.clock += AGAIN_SECONDS
    assert proc.pipes.among(700, ["1"]) == (700, 700)
    proc.has("1", *SOCKETS)
    assert proc.pipes.among(600, ["1"]) == (600, 600)
    assert proc.pipes.among(600, ["1"], anew=True) == (0, 0)


def test_of_very_many_the_rest_may_be_pipes(proc, monkeypatch):
    monkeypatch.setattr(pipe_memory, "MANY", 1000)
    proc.has("1", *SOCKETS)
    proc.has("2", *SOCKETS)
    assert proc.pipes.among(1200, ["1", "2"]) == (200, 200)


def test_of_a_process_that_may_not_be_read_all_may_be_pipes(proc, monkeypatch):
    proc.has("1", *SOCKETS)
    real = os.readlink

    def refuse(path):
        if "/1/" in path:
            raise PermissionError(13, "no")
        return real(path)

    monkeypatch.setattr(os, "readlink", refuse)
    assert proc.pipes.among(600, ["1"]) == (600, 600)
