"""The kernel's text on a process: every field in its place, any name, and nothing but ValueError for what is no such text."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.processes_pb2 import ProcStat, ProcStatus
from adyton.remote.proc_files import STATES, parse_children, parse_stat, parse_status

FIELDS = [field for field in ProcStat.DESCRIPTOR.fields if field.number <= 52]
RANGES = {  # of protobuf's types
    ProcStat.DESCRIPTOR.fields[0].TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    ProcStat.DESCRIPTOR.fields[0].TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    ProcStat.DESCRIPTOR.fields[0].TYPE_UINT32: (0, (1 << 32) - 1),
    ProcStat.DESCRIPTOR.fields[0].TYPE_UINT64: (0, (1 << 64) - 1),
}
NAMES = st.one_of(
    st.binary(max_size=15).map(lambda name: name.replace(b"\0", b"")),
    st.text(") (\\n\n 1S", max_size=15).map(str.encode),
)
NUMBERS = st.tuples(*(st.integers(*RANGES[field.type]) for field in FIELDS[3:]))
STATUS = Path("/proc/self/status").read_bytes()


@given(st.integers(1, (1 << 31) - 1), NAMES, st.sampled_from(sorted(STATES)), NUMBERS, st.booleans())
def test_what_the_kernel_writes_is_read_back(pid, name, state, numbers, newer):
    text = b"%d (%s) %s %s%s\n" % (
        pid,
        name,
        state.encode(),
        " ".join(map(str, numbers)).encode(),
        b" 77 78" if newer else b"",
    )
    stat = parse_stat(text)
    assert [getattr(stat, field.name) for field in FIELDS] == [pid, name.decode("utf-8", "replace"), state, *numbers]


@given(st.one_of(st.binary(), st.binary().map(lambda tail: b"1 (a) S " + b"1 " * 48 + tail)))
def test_any_bytes_are_a_stat_or_a_value_error(data):
    try:
        assert parse_stat(data).pid > 0
    except ValueError:
        pass


@given(st.one_of(st.binary(), st.lists(st.sampled_from(STATUS.splitlines())).map(b"\n".join)), st.binary(max_size=8))
def test_any_bytes_are_a_status_or_a_value_error(data, tail):
    for text in (data, STATUS + data, STATUS[: len(data)] + tail + STATUS[len(data) :]):
        try:
            assert parse_status(text).name is not None
        except ValueError:
            pass


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1",
        b"1 (a)",
        b"1 (a) S 2",
        b"x (a) S " + b"1 " * 49,
        b"0 (a) S " + b"1 " * 49,
        b"1 (a) Q " + b"1 " * 49,
        b"1 (a) S " + b"1 " * 48,
        b"1 (a) S " + b"1 " * 48 + b"1_0",
        b"1 (a) S " + b"1 " * 48 + b"0x1",
        b"1 (a) S " + b"1 " * 48 + b"99999999999",
        b"1 (a) S " + b"-1 " * 49,
        b"1 (a) S " + "\u0661 ".encode() * 49,
        b"1 (" + b"a" * (1 << 20) + b") S " + b"1 " * 49,
    ],
    ids=[
        "empty",
        "pid",
        "name",
        "short",
        "no-pid",
        "pid-0",
        "state",
        "51",
        "grouped",
        "hex",
        "large",
        "negative",
        "digits",
        "long",
    ],
)
def test_no_stat(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_stat(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Name:\t", b"Game:\t"),
        (b"Uid:\t", b"Uid:\t1\t"),
        (b"Threads:\t", b"Threads:\t-"),
        (b"VmSize:\t", b"VmSize:\tx"),
        (b" kB", b" MB"),
        (b"SigQ:\t", b"SigQ:\t/"),
        (b"CapEff:\t", b"CapEff:\tg"),
        (b"Umask:\t", b"Umask:\t9"),
        (b"Threads:", b"Threads:\t1\nThreads:"),
    ],
    ids=lambda text: text.decode().strip().replace("\t", "_").replace("\n", "_"),
)
def test_no_status(old, new):
    assert old in STATUS
    with pytest.raises(ValueError, match=r"\w"):
        parse_status(STATUS.replace(old, new))


@pytest.mark.parametrize("name", [b"a) S 1 (b", b") ", b"a b", b"new\nline", b"back\\slash\\n", b"\xff\xfe", b"x:\ty"])
def test_names_that_this_kernel_has_for_a_thread(name):
    """A thread's files are as a process's; its name can be anything of 15 bytes."""
    found = []

    def look() -> None:
        assert ctypes.CDLL(None, use_errno=True).prctl(15, name, 0, 0, 0) == 0  # PR_SET_NAME
        folder = Path(f"/proc/self/task/{threading.get_native_id()}")
        found.append(parse_stat((folder / "stat").read_bytes()))
        found.append(parse_status((folder / "status").read_bytes()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    stat, status = found
    assert stat.comm == status.name == name.decode("utf-8", "replace")
    assert stat.pgrp == os.getpgid(0)


def of_one_moment():
    """This process's two files, while no thread of an earlier test ended between them."""
    while True:
        texts = [Path("/proc/self", name).read_bytes() for name in ("stat", "status", "stat")]
        stat, status, again = (
            parse(text) for parse, text in zip((parse_stat, parse_status, parse_stat), texts, strict=True)
        )
        if stat.num_threads == again.num_threads:
            return stat, status


def test_this_process_as_the_system_calls_have_it():
    stat, status = of_one_moment()
    assert (stat.pid, stat.ppid, stat.pgrp, stat.session) == (os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0))
    assert (status.pid, status.tgid, status.ppid) == (os.getpid(), os.getpid(), os.getppid())
    ids = (status.uid.real, status.uid.effective, status.uid.saved)
    assert ids == os.getresuid()
    assert (status.gid.real, status.gid.effective, status.gid.saved) == os.getresgid()
    assert list(status.groups) == sorted(os.getgroups())
    assert abs(stat.utime / os.sysconf("SC_CLK_TCK") - os.times().user) < 5
    assert stat.vsize > stat.rss * os.sysconf("SC_PAGE_SIZE") > 1 << 20
    assert status.vm_size > status.vm_rss > 1 << 10
    assert status.vm_hwm >= status.vm_rss
    assert status.threads == stat.num_threads >= 1
    assert status.sigq_limit > 0
    assert status.sig_cgt & (1 << (2 - 1))  # SIGINT, which Python catches
    assert status.state == stat.state == "R"


def test_every_other_process_of_this_machine():
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, status = (entry / "stat").read_bytes(), (entry / "status").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            assert parse_stat(stat).pid == parse_status(status).pid == int(entry.name)


def test_a_kernel_that_says_less():
    kept = [
        line for line in STATUS.splitlines() if not line.startswith((b"Vm", b"Rss", b"Seccomp", b"NSpid", b"Umask"))
    ]
    status = parse_status(b"\n".join(kept))
    assert not status.HasField("vm_size")
    assert not status.HasField("seccomp")
    assert ProcStatus(pid=os.getpid()).pid == status.pid


def test_children():
    assert parse_children(b"") == []
    assert parse_children(b"12 345 ") == [12, 345]
    with pytest.raises(ValueError, match="no number"):
        parse_children(b"12 x")
