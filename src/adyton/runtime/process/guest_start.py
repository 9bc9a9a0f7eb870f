"""Starting a guest: from the fork in a supervisor that has no threads, to the image's code behind all its walls.

    supervisor ─fork─► intermediate: new user, mount, pid, net, ipc and uts namespaces
                           ├─fork─► PID 1 in there (init.py);   the intermediate exits, the supervisor becomes the parent of both
                           └─fork─► guest
    supervisor ◄─ FUSE ──  descriptors, see GuestStart
    guest: mounts its own on the FUSE root (the supervisor answers look-ups meanwhile), makes that its root
    supervisor ── GO ────► guest: dies with its parent from now on, and is in a cgroup namespace
               ◄─ READY ─  or FAILED
    guest: main(side), which calls side.finish before it runs any of the image's code
               ◄─ LISTENER, on which the supervisor is asked about system calls from then on

The guest's mounts are clones of what the zygote prepared (root.py), so few calls are left to do here. No descriptor of /dev/fuse
stays in the guest: a second holder would keep a dead enclave's programs waiting for ever.
"""

from __future__ import annotations

import contextlib
import gc
import os
import posixpath
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from adyton.crypto.fresh import draw_anew
from adyton.errors import PlatformError
from adyton.hostcall.own_paths import own_path
from adyton.image.manifest import PYTHON_PROGRAM
from adyton.runtime.process import filter as syscall_filter
from adyton.runtime.process import init, mounts, namespaces, root, vdso
from adyton.runtime.process.guest import CLOCK, CLOCK_FILE
from adyton.runtime.process.libc import install_filter, system_call
from adyton.runtime.process.namespaces import GUEST_UID

GO = b"go"
FUSE = b"fuse"
READY = b"ready"
LISTENER = b"listener"  # guest → supervisor, before any of the image's code runs: the filter's listener, its descriptor attached
FAILED = b"failed:"

HOME = root.IMAGE
STANDARD_INPUT = "/dev/stdin"  # in the FUSE tree, where the supervisor serves it; /dev is laid over it

# Of the tree in root.SYSTEM, what is mounted over the FUSE root; those that the server lacks are left out. (/bin has nothing
# in it.)
_GRAFTS = ("usr", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "dev", "opt/adyton")

_MOST_THREADS = 4096
# Where the server's memory is short, the largest of the enclaves' programs goes before what else runs there, unless that has 30 % of all
# memory more. See proc_pid_oom_score_adj(5).
_OOM_SCORE_ADJUSTMENT = 300
_LAST_DESCRIPTOR = 0xFFFFFFFF
_SHM_SIZE = _TMP_SIZE = 256 << 20
_IMAGE_SIZE = "1g"
_INODES = "65536"
# As the FUSE tree is: what may run is the image's and the runtime's.
_FOR_DATA = mounts.NO_SUID | mounts.NO_DEV | mounts.NO_EXEC

_KINDS = (
    namespaces.NEWUSER
    | namespaces.NEWNS
    | namespaces.NEWPID
    | namespaces.NEWNET
    | namespaces.NEWIPC
    | namespaces.NEWUTS
)


_Layer = TypeVar("_Layer")


@dataclass(frozen=True)
class Limits:
    """Of one guest; None: the server's own limit.

    `memory`: bytes of data of each of its processes, and of each of its own file systems (of all together: memory_watch.py);
    `threads`: of all its processes together (None: 4096); `files`: open in each; `cpu`: seconds of processor time of each.
    """

    memory: int | None = None
    threads: int | None = None
    files: int | None = None
    cpu: int | None = None

    def size(self, most: int) -> int:
        """Of a tmpfs of at most so many bytes."""
        return most if self.memory is None else min(self.memory, most)

    @property
    def kept(self) -> int:
        """Bytes of the guest's files in memory, at most."""
        return self.size(_SHM_SIZE) + self.size(_TMP_SIZE)


@dataclass(frozen=True)
class GuestStart:
    """A started guest, which waits for its FUSE requests to be served. The holder closes the descriptors."""

    pid: int
    pidfd: int
    init: int  # descriptor of process 1 in there, with which all others end
    control: socket.socket  # SEQPACKET; the guest's READY or FAILED comes next
    fuse: int  # the FUSE connection: the only descriptor of it
    proc: int  # the root directory of the guest's own /proc
    shared: int  # the root directory of the file system that it has at /dev/shm
    diagnosis: socket.socket  # of its network namespace, see namespaces.open_diagnosis
    clock: int | None  # what the guest's clock follows, to be written, see vdso.py; None: it has the server's
    stdout: int  # read end of a pipe, non-blocking
    stderr: int


@dataclass(frozen=True)
class GuestSide:
    """What the guest's main gets. `finish(mount_tmp, working_directory, host_name) -> warnings`: puts up the last walls; called once.

    `mount_tmp`: /tmp is a file system of the guest's; else it is what the FUSE root makes of it.
    """

    control: socket.socket
    finish: Callable[[bool, str, str], list[str]]


def start_guest(
    main: Callable[[GuestSide], NoReturn],
    layers: list[_Layer],
    unpack: Callable[[_Layer, str], None],
    limits: Limits = Limits(),
    programs: Sequence[str] = (),
    client_time: bool = False,
    meanwhile: Callable[[], object] = lambda: None,
    join: Callable[[int], object] = lambda _process: None,
) -> GuestStart:
    """Start a guest that has each of `layers` unpacked (`unpack(layer, directory)`) in /enclave, and then calls `main`.

    Called once, before the process has threads. `programs`: as in the manifest; it is by their modes, which `unpack` gives, and by how
    their file systems are mounted that no others can be executed. `client_time`: the guest's realtime clock is to follow the client's,
    where this machine can do that. `meanwhile`: what there is to do here while the guest is being forked, such as
    imports of which the guest shall know nothing. `join`: called with each of its processes, before any of the image's code
    runs: puts it into a control group. PlatformError if the guest cannot be had.
    """
    control, guest_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stdout, guest_stdout = os.pipe2(os.O_CLOEXEC)
    stderr, guest_stderr = os.pipe2(os.O_CLOEXEC)
    told, tell = os.pipe2(os.O_CLOEXEC)
    supervisor, go = os.pipe2(os.O_CLOEXEC)
    namespaces.set_dumpable(True)  # the intermediate writes files below /proc/self, after a change of user
    intermediate = os.fork()
    if intermediate == 0:
        start = _Start(main, layers, unpack, limits, programs, client_time, guest_control, guest_stdout, guest_stderr)
        _in_child(lambda: start.intermediate(tell, supervisor), lambda text: os.write(tell, b"x" + text))
    namespaces.set_dumpable(False)
    for descriptor in (guest_stdout, guest_stderr, tell, supervisor):
        os.close(descriptor)
    guest_control.close()
    meanwhile()
    try:
        answer = os.read(told, 4096)
        os.close(told)
        if answer[:1] in (b"", b"x"):
            raise PlatformError(f"the guest's namespaces cannot be had: {answer[1:].decode() or 'its process ended'}")
        init_pid, pid = map(int, answer.split())
        pidfd, init_pidfd = os.pidfd_open(pid), os.pidfd_open(init_pid)
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 5)
        if message != FUSE or len(descriptors) not in (4, 5):
            raise PlatformError(
                f"the guest's file tree cannot be had: {message[len(FAILED) :].decode() or 'its process ended'}"
            )
        os.waitpid(intermediate, 0)  # has exited, and so both are this process's own children
        join(init_pid)
        join(pid)
        os.write(go, GO)  # and open as long as this process lives
        control.send(GO)
    except OSError as error:
        raise PlatformError(f"the guest cannot be started: {error}") from error
    for descriptor in (stdout, stderr):
        os.set_blocking(descriptor, False)
    fuse, proc, shared, diagnosis, *clock = descriptors
    return GuestStart(
        pid=pid,
        pidfd=pidfd,
        init=init_pidfd,
        control=control,
        fuse=fuse,
        proc=proc,
        shared=shared,
        diagnosis=socket.socket(fileno=diagnosis),
        clock=clock[0] if clock else None,
        stdout=stdout,
        stderr=stderr,
    )


def _limit(kind: int, value: int) -> None:
    """Set a resource limit for good. At the end of its processor time a process gets SIGXCPU, and a second later SIGKILL."""
    hard = resource.getrlimit(kind)[1]
    least = [] if hard == resource.RLIM_INFINITY else [hard]
    last = value + 1 if kind == resource.RLIMIT_CPU else value
    resource.setrlimit(kind, (min([value, *least]), min([last, *least])))


def _in_child(step: Callable[[], object], failed: Callable[[bytes], object]) -> NoReturn:
    """Run what never returns to the code that forked, whatever happens."""
    status = 1
    try:
        step()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - nothing may return
        with contextlib.suppress(OSError):
            failed(f"{type(error).__name__}: {error}".encode()[:2048])
    finally:
        os._exit(status)


@dataclass
class _Start(Generic[_Layer]):
    main: Callable[[GuestSide], NoReturn]
    layers: list[_Layer]
    unpack: Callable[[_Layer, str], None]
    limits: Limits
    programs: Sequence[str]
    client_time: bool
    control: socket.socket
    stdout: int
    stderr: int

    def intermediate(self, tell: int, supervisor: int) -> None:
        """Leave the server's namespaces; only children are in the new pid namespace."""
        uid, gid = os.geteuid(), os.getegid()
        namespaces.unshare(_KINDS)
        namespaces.map_ids(GUEST_UID, GUEST_UID, uid, gid)
        namespaces.raise_loopback()
        with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
            if int(file.read()) < _OOM_SCORE_ADJUSTMENT:  # only the privileged may lower it
                file.seek(0)
                file.write(str(_OOM_SCORE_ADJUSTMENT))
        first = os.fork()
        if first == 0:
            _in_child(lambda: init.run(supervisor), self._failed)
        pid = os.fork()
        if pid == 0:
            _in_child(self.guest, self._failed)
        os.write(tell, f"{first} {pid}".encode())

    def _failed(self, text: bytes) -> None:
        self.control.send(FAILED + text)

    def guest(self) -> None:
        """The process that the program runs in."""
        self._descriptors()
        namespaces.set_name("enclave")
        os.setsid()
        shown, clock = self._clock() if self.client_time and vdso.installed() else (None, ())
        device = os.open(root.FUSE, os.O_RDWR | os.O_CLOEXEC)
        mounts.attach(mounts.fuse(device, GUEST_UID), root.MOUNT_POINT)
        proc = mounts.file_system("proc", {}, mounts.NO_SUID | mounts.NO_DEV | mounts.NO_EXEC)
        options = {"size": str(self.limits.size(_SHM_SIZE)), "nr_inodes": _INODES, "mode": "1777"}
        shm = mounts.file_system("tmpfs", options, _FOR_DATA)
        directories = [os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=each) for each in (proc, shm)]
        sent = [device, *directories, namespaces.open_diagnosis().detach(), *clock]
        socket.send_fds(self.control, [FUSE], sent)
        for descriptor in sent:
            os.close(descriptor)
        standard_input = os.open(root.MOUNT_POINT + STANDARD_INPUT, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(standard_input, 0)
        os.close(standard_input)
        stream = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - the process's own
        for name in ("stdin", "__stdin__"):
            setattr(sys, name, stream)
        self._graft(proc, shm, shown)
        namespaces.set_host_name("enclave")
        if self.control.recv(16) != GO:
            return
        namespaces.unshare(
            namespaces.NEWCGROUP
        )  # /proc/self/cgroup would name the service or container that the server is
        namespaces.die_with_parent()
        self.control.send(READY)  # fails if the parent was gone already, which ends this process
        self.main(GuestSide(self.control, self._finish))

    def _descriptors(self) -> None:
        """Standard streams and the control socket; all else that was the supervisor's is closed."""
        os.dup2(self.stdout, 1)
        os.dup2(self.stderr, 2)
        kept = self.control.fileno()
        for first, last in ((3, kept - 1), (kept + 1, _LAST_DESCRIPTOR)):
            if first <= last:
                system_call("close_range", first, last, 0)
        sys.path.remove(root.SUPERVISOR_LIBRARIES)
        draw_anew()
        gc.freeze()  # objects of the supervisor's name closed descriptors: none of them may be collected, and close a new one
        for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
            stream = open(number, "w", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115 - the process's own
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)

    def _clock(self) -> tuple[int, tuple[int]]:
        """A file that only the supervisor can write, which this process's clock follows: a mount of its directory, and the file.

        It is on a file system that is mounted twice, once to make the file and once to show it: this program is its owner, and could
        cut off the end that the supervisor has mapped.
        """
        mounts.attach(mounts.file_system("tmpfs", {"size": "4k", "mode": "0555"}, _FOR_DATA), root.MOUNT_POINT)
        directory = mounts.clone(root.MOUNT_POINT)
        name = os.path.basename(CLOCK_FILE)
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=directory)
        os.ftruncate(file, vdso.PAGE)
        os.close(directory)
        mounts.restrict(root.MOUNT_POINT, mounts.READ_ONLY)
        with open(f"{root.MOUNT_POINT}/{name}", "rb") as shown:
            vdso.follow(shown.fileno())
        return mounts.clone(root.MOUNT_POINT), (file,)

    def _graft(self, proc: int, shm: int, clock: int | None) -> None:
        """Lay the enclave's own over the FUSE root, and make that the root."""
        top = root.MOUNT_POINT
        for name in _GRAFTS:
            source = f"{root.SYSTEM}/{name}"
            if os.path.isdir(source):
                mounts.attach(mounts.clone(source), f"{top}/{name}")
        if PYTHON_PROGRAM not in self.programs:
            mounts.restrict(top + os.path.realpath(sys.executable), mounts.NO_EXEC)
        if clock is not None:
            mounts.attach(clock, top + CLOCK)
        mounts.attach(proc, f"{top}/proc")
        mounts.attach(shm, f"{top}/dev/shm")  # noqa: S108 - the guest's own
        image = mounts.file_system("tmpfs", {"size": _IMAGE_SIZE, "nr_inodes": _INODES, "mode": "0755"})
        mounts.attach(image, top + HOME)
        for layer in self.layers:
            self.unpack(layer, top + HOME)
        mounts.restrict(top + HOME, mounts.READ_ONLY)
        mounts.become_root(top)

    def _finish(self, mount_tmp: bool, working_directory: str, host_name: str) -> list[str]:
        if len(os.listdir("/proc/self/task")) != 1:
            raise PlatformError("the guest has threads already, and they would stay outside of its walls")
        warnings = []
        namespaces.set_host_name(host_name)
        directory = HOME if own_path(posixpath.normpath(working_directory)) else working_directory
        if mount_tmp:
            options = {"size": str(self.limits.size(_TMP_SIZE)), "nr_inodes": _INODES, "mode": "1777"}
            mounts.attach(mounts.file_system("tmpfs", options, _FOR_DATA), "/tmp")  # noqa: S108 - the enclave's own
        try:
            os.chdir(directory)
        except OSError:
            directory = HOME
            os.chdir(directory)
        if self.client_time and not vdso.installed():
            warnings.append("the enclave has the server's clock: on this machine it cannot have the client's")
        if directory != working_directory:
            warnings.append(f"the enclave starts in {HOME}: {working_directory} cannot be its working directory")
        for kind, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_DATA, self.limits.memory),
            (resource.RLIMIT_NPROC, self.limits.threads or _MOST_THREADS),
            (resource.RLIMIT_NOFILE, self.limits.files),
            (resource.RLIMIT_CPU, self.limits.cpu),
        ):
            if value is not None:
                _limit(kind, value)
        namespaces.drop_capabilities_for_good()
        namespaces.no_new_privileges()
        listener = install_filter(syscall_filter.guest_filter(programs=bool(self.programs)), listened=True)
        socket.send_fds(self.control, [LISTENER], [listener])
        os.close(listener)
        return warnings
