"""Memory that a process has for a moment, which its parent lends it, when that begins or ends while the watch adds up what there is."""

from __future__ import annotations

import itertools

import pytest

from adyton.runtime.process.supervisor import memory_watch
from adyton.runtime.process.supervisor.memory_watch import MemoryWatch

MIB = 1 << 20


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """Have /proc show a parent of 200 MiB with its child, which has as many MiB as are given."""
    monkeypatch.setattr(memory_watch, "queued", lambda *_: 0)
    monkeypatch.setattr(memory_watch, "listed", lambda *_: 0)

    def write(child: int) -> str:
        for process, size in (("1", 200), ("2", child)):
            (tmp_path / process / "fd").mkdir(parents=True, exist_ok=True)
            (tmp_path / process / "status").write_text(f"Name:\tx\nRssAnon:\t{size << 10} kB\n")
            (tmp_path / process / "smaps_rollup").write_text(f"Rss: 1 kB\nPss_Anon:\t{size << 10} kB\n")
        return str(tmp_path)

    return write


@pytest.mark.parametrize("found", [[{("1", "1"): b"3"}, {}], [{}, {("1", "1"): b"3"}]], ids=["ceases", "begins"])
def test_who_ceases_or_begins_to_lend_meanwhile_is_looked_at_again(proc, monkeypatch, found):
    told = iter(found)

    def waiting(folder):
        now = next(told, {})
        if now is found[1]:
            proc(child=1)  # the next look is at this
        return now

    monkeypatch.setattr(memory_watch, "waiting", waiting)
    assert MemoryWatch(-1, 200 * MIB, None, proc(child=200)).look().memory == 201 * MIB


def test_who_lends_again_and_again_is_ended_all_the_same(proc, monkeypatch):
    asked = itertools.count()
    monkeypatch.setattr(memory_watch, "waiting", lambda folder: {("1", "1"): b"%d" % next(asked)})
    assert MemoryWatch(-1, 200 * MIB, None, proc(child=200)).look().memory == 400 * MIB
    assert next(asked) == 2 * memory_watch.EXACT_LOOKS
