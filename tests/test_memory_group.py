"""Control groups for enclaves: where they may be made, what they bound, and that none is left over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from greedy import answers, build
from sandbox import children, wait_until_ended

import adyton
from adyton.runtime.process import memory_group
from adyton.runtime.process.memory_group import Groups, NoGroupError, find

sandboxed = pytest.mark.sandbox


def _why_not() -> str:
    try:
        find()
    except NoGroupError as error:
        return str(error)
    return ""


grouped = pytest.mark.skipif(bool(_why_not()), reason=f"no control groups can be made here: {_why_not()}")

MOUNTED = (
    "31 23 0:28 / {}/memory rw,relatime - cgroup cgroup rw,memory\n41 31 0:38 {} {}/unified rw - cgroup2 cgroup2 rw\n"
)


@pytest.fixture
def machine(tmp_path):
    """Where a machine's control groups are, and `found(lines of /proc/PID/cgroup, root of what is mounted)`: `find` there."""

    class Machine:
        path = tmp_path

        def group(self, name: str, **files: str) -> Path:
            folder = tmp_path / name
            folder.mkdir(parents=True)
            for file, content in files.items():
                (folder / file.replace("__", ".")).write_text(content)
            return folder

        def found(self, own: str, root: str = "/") -> memory_group.Place:
            (tmp_path / "cgroup").write_text(own)
            (tmp_path / "mountinfo").write_text(MOUNTED.format(tmp_path, root, tmp_path))
            return find(str(tmp_path))

    return Machine()


def test_of_version_1_the_servers_own_group_is_taken(machine):
    own = machine.group("memory/service")
    place = machine.found("9:name=systemd:/x\n4:cpu,memory:/service\n0::/elsewhere\n")
    assert (place.path, place.version.name) == (str(own), "cgroup v1")


def test_of_version_2_a_group_that_was_delegated_is_taken(machine):
    own = machine.group("unified/a/service", cgroup__type="domain", cgroup__controllers="cpu memory")
    with pytest.raises(NoGroupError, match=r"control group /a/service was not delegated to it .*Delegate=yes"):
        machine.found("0::/a/service\n")
    os.setxattr(own, "user.delegate", b"1")
    place = machine.found("0::/a/service\n")
    assert (place.path, place.version.name, place.is_root) == (str(own), "cgroup v2", False)
    machine.group("unified/a/service/adyton-server", cgroup__type="domain", cgroup__controllers="cpu memory")
    assert machine.found("0::/a/service/adyton-server\n") == place
    assert machine.found("0::/top/a/service\n", root="/top") == place
    (own / "cgroup.controllers").write_text("cpu")
    with pytest.raises(NoGroupError, match="has no memory controller"):
        machine.found("0::/a/service\n")


def test_of_version_2_the_root_is_taken(machine):
    own = machine.group("unified", cgroup__controllers="memory", cgroup__subtree_control="")
    place = machine.found("0::/\n")
    assert (place.path, place.is_root) == (str(own), True)
    place.prepare()
    assert (own / "cgroup.subtree_control").read_text() == "+memory"


@pytest.mark.parametrize(
    "own",
    ["", "0::/../..\n", "4:memory:/../other\n", "4:cpu:/x\n", "nonsense\n"],
)
def test_elsewhere_there_is_none(machine, own):
    with pytest.raises(NoGroupError):
        machine.found(own)


def test_who_may_not_write_there_has_none(machine, monkeypatch):
    machine.group("memory/service")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(NoGroupError, match="may not make"):
        machine.found("4:memory:/service\n")


# -- the kernel's -----------------------------------------------------------------------------------------------------------

HOG = "import sys; sys.stdin.read(1); held = bytearray(b'x') * (256 << 20); print('had it all')"


def made() -> tuple[Groups, str]:
    descriptor = memory_group.make()
    assert descriptor is not None
    return Groups(descriptor), os.readlink(f"/proc/self/fd/{descriptor}")


@grouped
def test_who_would_have_more_than_its_bound_is_ended():
    groups, path = made()
    group = groups.new()
    group.bound(64 << 20)
    hog = subprocess.Popen([sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    group.join(hog.pid)
    assert group.killed() == 0
    groups.sweep()  # nothing, for it has a process
    assert os.path.isdir(f"{path}/1")
    assert hog.communicate(b"x") == (b"", None)
    assert hog.returncode == -signal.SIGKILL
    assert group.killed() >= 1  # version 2 counts the first twice
    group.close()
    groups.remove()
    groups.close()
    assert not os.path.exists(path)


@grouped
def test_a_group_stays_until_its_supervisor_has_closed_it():
    groups, path = made()
    group = groups.new()
    groups.sweep()  # as when another enclave ends before this one's first process has joined
    sleeper = subprocess.Popen(["sleep", "60"])
    group.join(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    groups.sweep()
    assert group.killed() == 0
    group.close()
    groups.sweep()
    assert not os.path.exists(f"{path}/1")
    groups.remove()
    groups.close()


@grouped
def test_what_was_left_is_removed_and_what_is_in_use_is_not():
    groups, path = made()
    groups.new().close()
    code = """
import os, sys
from adyton.runtime.process import memory_group
directory = memory_group.make()
memory_group.Groups(directory).new()
print(os.readlink(f"/proc/self/fd/{directory}"), flush=True)
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left = killed.stdout.strip()
    assert os.path.isdir(f"{left}/1")
    others, other = made()
    assert not os.path.exists(left)
    assert os.path.isdir(f"{path}/1")
    for each in (groups, others):
        each.remove()
        each.close()
    assert not os.path.exists(path)
    assert not os.path.exists(other)


# -- enclaves' --------------------------------------------------------------------------------------------------------------

# What no look can see: pages of shared anonymous memory that no process maps any more, while another page of the same mapping is.
HIDES = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
size = 32 << 20
for _ in range(40):
    at = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, -1, 0)
    ctypes.memset(at, 1, size)
    libc.munmap(at + mmap.PAGESIZE, size - mmap.PAGESIZE)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return build(tmp_path_factory.mktemp("greedy"), '{ memory = "64MiB", threads = 300 }')


@sandboxed
@grouped
def test_memory_that_no_look_sees_is_bounded_and_the_end_is_told(image):
    with adyton.load(image) as neighbour:
        client = adyton.load(image)
        with pytest.raises(adyton.errors.ConnectionLostError) as caught:
            client.call("execute", HIDES)
        assert "the kernel ended one of its processes" in str(caught.value)
        assert "raise limits.memory" in str(caught.value)
        with pytest.raises(adyton.errors.ConnectionLostError):
            client.close()
        assert answers(neighbour)


COPY_AT_ONCE = """
held = mmap.mmap(-1, 24 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, len(held), mmap.PAGESIZE):
    held[at] = 1
waits, go = os.pipe()
for _ in range(120):
    if os.fork() == 0:
        os.close(go)
        os.read(waits, 1)
        for at in range(0, len(held), mmap.PAGESIZE):
            held[at] = 2
        time.sleep(600)
time.sleep(0.5)
os.close(go)
time.sleep(600)
"""
HAND_OVER = """
def hop():
    held = []
    while True:
        held.append(mmap.mmap(-1, 256 << 10, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        for at in range(0, len(held[-1]), mmap.PAGESIZE):
            held[-1][at] = 1
        time.sleep(0.005)
        if os.fork():
            os._exit(0)
for _ in range(30):
    if os.fork() == 0:
        hop()
time.sleep(600)
"""


@sandboxed
@grouped
@pytest.mark.parametrize("attack", [COPY_AT_ONCE, HAND_OVER], ids=["copies at once", "chains"])
def test_memory_that_looks_see_late_is_bounded(image, attack):
    before = children(os.getpid())
    client = adyton.load(image)
    group, most = group_of(children(os.getpid()) - before), 0

    def ended() -> bool:
        nonlocal most
        most = max(most, usage(group))
        return call.done()

    call = client.submit("execute", attack)
    until = time.monotonic() + 60
    while not ended() and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(adyton.errors.ConnectionLostError, match="used more memory than its limit of 64 MiB"):
        call.result(timeout=0)
    # 64 MiB, a quarter, and 64 more, and as much as it may have in /tmp and /dev/shm
    assert most <= (64 + 16 + 64 + 2 * 64) << 20
    with pytest.raises(adyton.errors.ConnectionLostError):
        client.close()


def usage(group: Path) -> int:
    for name in ("memory.current", "memory.usage_in_bytes"):
        try:
            return int((group / name).read_text())
        except OSError:
            continue
    return 0


def group_of(processes: set[int]) -> Path:
    """The one that one of them is in."""
    for group in Path(find().path).glob("adyton-*/[0-9]*"):
        with contextlib.suppress(OSError):  # another test's, which has ended
            if processes & members(group):
                return group
    raise AssertionError(processes)


def members(group: Path) -> set[int]:
    return set(map(int, (group / "cgroup.procs").read_text().split()))


@sandboxed
@grouped
def test_no_group_is_left_and_a_program_sees_none_of_its_server(image):
    before = children(os.getpid())
    with adyton.load(image) as client:
        shown = client.call("execute", "result = open('/proc/self/cgroup').read() + open('/proc/1/cgroup').read()")
        assert "adyton" not in shown
        assert {line.split(":", 2)[2] for line in shown.splitlines()} <= {"/"}
        mine = group_of(children(os.getpid()) - before)
        inside = members(mine)
        assert len(inside) == 2  # init, and the program
    assert wait_until_ended(inside) == set()
    until = time.monotonic() + 10
    while mine.parent.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not mine.parent.exists()
