"""Memory that a process has for a moment, which its parent lends it: who has such, and that it counts once."""

from __future__ import annotations

import shutil

import pytest

from adyton.runtime.process.supervisor import memory_lent, memory_watch
from adyton.runtime.process.supervisor.memory_lent import borrowers
from adyton.runtime.process.supervisor.memory_watch import MemoryWatch

MIB = 1 << 20
WAITS = f"{memory_lent._CLONE} 0x4111 0x1 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """However slow this machine is, an exact look is waited for, and the last one was a moment ago."""
    monkeypatch.setattr(memory_watch, "EXACT_SECONDS", 60)


class Proc:
    """Processes, as /proc shows them."""

    def __init__(self, folder):
        self.folder = folder

    def process(self, number, size, *, forked=True, state="S", parent="1"):
        """Of `size` MiB, of its own as far as it can be seen."""
        (self.folder / number / "fd").mkdir(parents=True, exist_ok=True)
        (self.folder / number / "task").mkdir(exist_ok=True)
        (self.folder / number / "status").write_text(f"Name:\tx\nRssAnon:\t{size << 10} kB\n")
        (self.folder / number / "smaps_rollup").write_text(f"Rss: 1 kB\nPss_Anon:\t{size << 10} kB\n")
        (self.folder / number / "stat").write_text(
            f"{number} (a) b) {state} {parent} 2 3 0 -1 {0x400040 if forked else 0x400000} 1"
        )

    def thread(self, process, number, call=WAITS, *, wchan="kernel_clone", state="D", children="", runs=3):
        folder = self.folder / process / "task" / number
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "syscall").write_text(call)
        (folder / "wchan").write_text(wchan)
        (folder / "status").write_text(f"Name:\tx\nvoluntary_ctxt_switches:\t{runs}\nnonvoluntary_ctxt_switches:\t1\n")
        (folder / "children").write_text(children)
        (folder / "stat").write_text(f"{number} (x) {state} 1 2 3 0 -1 4194304 1")

    def watch(self, limit):
        """The wall is at 314 MiB where the limit is 200."""
        return MemoryWatch(-1, limit * MIB, None, str(self.folder))


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A parent of 200 MiB, and a child of its own that has executed a program of 1 MiB."""
    monkeypatch.setattr(memory_watch, "queued", lambda *_: 0)
    monkeypatch.setattr(memory_watch, "listed", lambda *_: 0)
    monkeypatch.setattr(memory_watch, "DESCRIPTOR", 0)  # what a directory's size is, its file system says
    proc = Proc(tmp_path)
    proc.process("1", 200, forked=False)
    proc.process("2", 1, forked=False)
    return proc


@pytest.mark.parametrize("wchan", ["kernel_clone", "wait_for_vfork_done", "kernel_clone.constprop.0"])
def test_the_child_of_a_thread_that_waits_for_it_has_its_memory(proc, wchan):
    proc.process("3", 200)
    proc.thread("1", "7", wchan=wchan, children="2 3 ")
    assert borrowers(str(proc.folder)) == {"3": True}


@pytest.mark.parametrize(
    ("call", "wchan", "state"),
    [
        ("running\n", "0", "R"),
        ("-1 0x7ffc 0x7f00\n", "kernel_clone", "D"),
        (WAITS, "do_signal_stop", "T"),
        (WAITS, "folio_wait_bit_common", "S"),
        (WAITS.replace("0x4111", "0x4011"), "kernel_clone", "D"),
        (WAITS.replace("0x4111", "0xc111"), "kernel_clone", "D"),
        (WAITS.replace("0x4111", "0x14111"), "kernel_clone", "D"),
        (WAITS.replace("0x4111", "0x10004111"), "kernel_clone", "D"),
        ("0 0x4111 0x1 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n", "kernel_clone", "D"),
    ],
)
def test_who_does_not_wait_lends_nothing(proc, call, wchan, state):
    proc.process("3", 200)
    proc.thread("1", "7", call, wchan=wchan, state=state, children="3 ")
    assert not borrowers(str(proc.folder))


def test_who_has_executed_a_program_or_ended_has_nothing_of_its_parents(proc):
    proc.process("3", 0, state="Z")
    proc.thread("1", "7", children="2 3 4 ")
    assert not borrowers(str(proc.folder))


@pytest.mark.parametrize(
    ("wchan", "children"), [("0", "3 "), ("folio_wait_bit_common", "3 "), ("kernel_clone", "4 3 ")]
)
def test_it_is_not_sure_who_borrows_if_it_may_be_another_one_or_nobody(proc, wchan, children):
    for process in ("3", "4"):
        proc.process(process, 200)
    proc.thread("1", "7", wchan=wchan, children=children)
    assert borrowers(str(proc.folder)) == {"3": False}


@pytest.mark.parametrize("again", [True, False])
def test_who_was_forked_before_is_not_taken_for_one_that_has_executed_its_program_meanwhile(proc, monkeypatch, again):
    """`again`: the thread has started another one by then."""
    proc.process("3", 200)
    proc.process("4", 200)
    proc.thread("1", "7", children="3 4 ")
    real = memory_lent.is_forked

    def executes(folder, process):
        if process == "4":
            monkeypatch.setattr(memory_lent, "is_forked", real)
            proc.process("4", 1, forked=False)
            proc.process("5", 200)
            proc.thread("1", "7", WAITS if again else "running\n", children="3 5 ", runs=4)
        return real(folder, process)

    monkeypatch.setattr(memory_lent, "is_forked", executes)
    assert borrowers(str(proc.folder)) == ({"5": False} if again else {})


@pytest.mark.parametrize(
    ("others", "expected"), [({}, {"3": True}), ({"4": "2"}, {"3": True}), ({"4": "1"}, {"3": False, "4": False})]
)
def test_where_the_kernel_does_not_tell_a_threads_children_it_is_one_of_its_processs(proc, others, expected):
    proc.process("3", 200)
    for number, parent in others.items():
        proc.process(number, 200, parent=parent)
    proc.thread("1", "7")
    (proc.folder / "1" / "task" / "7" / "children").unlink()  # CONFIG_PROC_CHILDREN
    assert borrowers(str(proc.folder)) == expected


def test_however_many_borrow_at_once_it_counts_once(proc):
    for process in "3456789":
        proc.process(process, 200)
        proc.thread("1", f"1{process}", children=process)
    watch = proc.watch(200)
    assert watch.look().memory == 201 * MIB
    proc.process("1", 250, forked=False)
    for process in "3456789":
        proc.process(process, 250)
    assert watch.look().memory == 251 * MIB, "nor is what it takes meanwhile new in each"


def test_what_is_not_surely_borrowed_counts_once_up_to_the_limit(proc):
    for process in "34":
        proc.process(process, 200)
        proc.thread("1", f"1{process}", wchan="0", children=process)
    assert proc.watch(200).look().memory == 401 * MIB
    assert proc.watch(400).look().memory == 201 * MIB


def test_who_has_others_memory_and_takes_its_own_is_ended_all_the_same(proc):
    proc.process("3", 200)
    proc.thread("1", "7", children="3 ")
    watch = proc.watch(200)
    watch.look()
    proc.process("2", 150, forked=False)
    assert watch.look(exactly=False).memory == 350 * MIB


def test_who_has_memory_of_its_own_since_it_was_counted_is_not_twice_as_much(proc, monkeypatch):
    """It borrows nothing any more when that is asked: a moment before, it executed its program."""
    proc.process("3", 200)
    watch = proc.watch(200)
    watch.look()
    proc.process("1", 310, forked=False)
    proc.process("3", 310)

    def executes(_proc):
        proc.process("3", 2, forked=False)
        return {}

    monkeypatch.setattr(memory_watch, "borrowers", executes)
    assert watch.look(exactly=False).memory == 313 * MIB


def test_who_lends_memory_again_and_again_is_not_looked_at_exactly_each_time(proc, monkeypatch):
    proc.process("3", 200)
    proc.thread("1", "7", children="3 ")
    watch = proc.watch(200)
    watch.look()
    monkeypatch.setattr(watch, "_exact", lambda: pytest.fail("a look that takes long"))
    for size in (250, 300, 250, 300):
        proc.process("1", size, forked=False)
        proc.process("3", size)
        assert watch.look(exactly=False).bytes <= watch.wall


def test_who_executes_its_program_while_it_is_looked_at_has_what_it_has_then(proc, monkeypatch):
    proc.process("3", 200)
    proc.thread("1", "7", children="3 ")
    watch = proc.watch(200)
    real = watch._together

    def executes(name, status):
        found = real(name, status)
        if name == "3":
            proc.process("3", 2, forked=False)
            proc.thread("1", "7", "running\n")
        return found

    monkeypatch.setattr(watch, "_together", executes)
    exact = watch._exact_once()
    assert exact.memory == 203 * MIB
    assert exact.sizes["3"].whole == 2 * MIB


def test_who_begins_to_borrow_while_it_is_looked_at_counts_nothing(proc, monkeypatch):
    proc.process("3", 200)
    watch = proc.watch(200)
    real = watch._together
    monkeypatch.setattr(watch, "_together", lambda *found: (proc.thread("1", "7", children="3 "), real(*found))[1])
    exact = watch._exact_once()
    assert exact.memory == 201 * MIB
    assert "3" not in exact.sizes


def test_what_only_one_of_several_looks_sees_ends_nobody(proc, monkeypatch):
    """Such as of who has given back what it had in common with one that is read after it."""
    proc.process("3", 200)
    watch = proc.watch(200)
    looks, real = [], watch._exact_once

    def once():
        looks.append(real())
        if len(looks) == 2:
            shutil.rmtree(proc.folder / "3")
        return looks[-1]

    monkeypatch.setattr(watch, "_exact_once", once)
    assert watch.look().memory == 201 * MIB
    assert len(looks) == 3


def test_no_more_are_read_exactly_than_are_too_much(proc):
    """To read all of many, which go on meanwhile, may take many times as long."""
    small = [str(number) for number in range(10, 40)]
    for process in small:
        proc.process(process, 1, forked=False)
    for process in "34":
        proc.process(process, 200, forked=False)
    watch = proc.watch(200)
    assert watch._exact().memory > watch.wall
    before = watch._read_exactly
    assert watch._exact().memory > watch.wall
    assert watch._read_exactly - before == 3 * 2, "those that had the most, by each of three looks"
