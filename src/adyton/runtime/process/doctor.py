"""What this machine can do for the process runtime, and why not. Each probe does in a process of its own what a start would do."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from adyton import errors
from adyton.errors import AdytonError
from adyton.runtime.process import filter as syscall_filter
from adyton.runtime.process import landlock, libc, memory_group, mounts, namespaces, root, table, vdso
from adyton.runtime.process.supervisor import socket_memory

KERNEL = (6, 6)
PROBE_SECONDS = 30.0


@dataclass(frozen=True)
class Finding:
    """One thing looked for. `needed`: without it no enclave can be started here; `detail`: what was found, and what to do."""

    name: str
    ok: bool
    detail: str
    needed: bool


class _LackingError(Exception):
    """What is not there, and what to do about it."""


def findings() -> list[Finding]:
    """All findings, in order. Takes some tens of milliseconds."""
    if sys.platform != "linux":
        return [Finding("system", ok=False, detail=f"{sys.platform}: the process runtime needs Linux", needed=True)]
    code = "import sys; sys.path.append(sys.argv[1]); from adyton.runtime.process.doctor import main; main()"  # no threads in there
    home = os.path.dirname(os.path.dirname(os.path.abspath(errors.__file__)))
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-B", "-c", code, home],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=True,
        )
        found = [Finding(**each) for each in json.loads(done.stdout)]
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        detail = f"{error}: {said.decode('utf-8', 'replace')[-500:]}"
        found = [Finding("probes", ok=False, detail=detail, needed=True)]
    return [_packages(), *found, *_platforms()]


def _platforms() -> list[Finding]:
    """What could prove where enclaves run: each is opened, which is what a server does."""
    from adyton.attestation import attesters  # needs packages, which the process of the probes has not
    from adyton.attestation.identity import PLATFORMS

    looks = {platform: attesters.look(platform) for platform in PLATFORMS}
    return [Finding(platform, ok=found.here, detail=found.detail, needed=False) for platform, found in looks.items()]


def main() -> None:
    """Print the findings of all probes as JSON."""
    found = []
    for name, needed, probe in PROBES:
        try:
            finding = Finding(name, ok=True, detail=probe(), needed=needed)
        except _LackingError as error:
            finding = Finding(name, ok=False, detail=str(error), needed=needed)
        except OSError as error:
            finding = Finding(name, ok=False, detail=str(error), needed=needed)
        found.append(dataclasses.asdict(finding))
    sys.stdout.write(json.dumps(found))


def _packages() -> Finding:
    try:
        plan = root.plan("/", "", {})
    except AdytonError as error:
        return Finding("packages", ok=False, detail=error.message, needed=True)
    return Finding(
        "packages", ok=True, detail=", ".join(sorted([*plan.libraries, *plan.supervisor_libraries])), needed=True
    )


# -- probes: each says what it found, or raises OSError or _LackingError ----------------------------------------------------


def _in_child(step: Callable[[], str | None]) -> str:
    """Run a step, which may change the process for good, in a child; what it says or raises is said or raised here."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(step, writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        raise _LackingError(f"ended by {signal.Signals(os.WTERMSIG(status)).name}")
    if os.WEXITSTATUS(status):
        raise _LackingError(text)
    return text


def _child(step: Callable[[], str | None], writer: int) -> NoReturn:
    status = 1
    try:
        text = step() or ""
        status = 0
    except BaseException as error:  # noqa: BLE001 - said by the parent
        text = str(error)
    os.write(writer, text.encode())
    os._exit(status)


def _kernel() -> str:
    release = os.uname().release
    version = tuple(int("0" + "".join(filter(str.isdigit, part))) for part in release.split(".")[:2])
    if version < KERNEL:
        raise _LackingError(f"Linux {release}: {KERNEL[0]}.{KERNEL[1]} or newer is needed")
    return f"Linux {release}"


def _architecture() -> str:
    if table.architecture() is None:
        raise _LackingError(f"{os.uname().machine}: the process runtime knows x86_64 and aarch64")
    return os.uname().machine


def _python() -> str:
    name = f"{platform.python_implementation()} {platform.python_version()}"
    if platform.python_implementation() != "CPython" or sys.version_info < (3, 11):
        raise _LackingError(f"{name}: CPython 3.11 or newer is needed")
    return name


# Settings of distributions that forbid user namespaces, the value that does, and what to do (as root).
_USER_NAMESPACE_SETTINGS = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for this Python with 'userns,'",
    ),
)


def _user_namespaces() -> str:
    def step() -> None:
        uid, gid = os.geteuid(), os.getegid()
        namespaces.unshare(namespaces.NEWUSER)
        namespaces.map_ids(1000, 1000, uid, gid)

    try:
        return _in_child(step) or "can be made"
    except _LackingError as error:
        advice = [advice for path, value, advice in _USER_NAMESPACE_SETTINGS if _read(path) == value]
        said = f": run {' and '.join(advice)}" if advice else ": is this a container that forbids them?"
        raise _LackingError(f"{error}{said}") from None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _own_namespaces() -> None:
    """As a guest's: all kinds, with a process in the new pid namespace to come."""
    uid, gid = os.geteuid(), os.getegid()
    kinds = namespaces.NEWNS | namespaces.NEWPID | namespaces.NEWNET | namespaces.NEWIPC | namespaces.NEWUTS
    namespaces.unshare(kinds | namespaces.NEWUSER)
    namespaces.map_ids(namespaces.GUEST_UID, namespaces.GUEST_UID, uid, gid)


def _namespaces() -> str:
    _in_child(_own_namespaces)
    return "user, mount, pid, net, ipc and uts namespaces can be made"


def _mounts() -> str:
    def guest() -> None:
        mounts.make_private()
        scratch = mounts.file_system("tmpfs", {"size": "64k"})
        mounts.attach(scratch, "/")
        os.chdir("/..")  # what was just mounted over the root
        os.mkdir("proc")
        mounts.attach(mounts.file_system("proc", {}, mounts.NO_SUID | mounts.NO_DEV | mounts.NO_EXEC), "proc")
        mounts.attach(mounts.clone("/usr"), "proc")
        mounts.become_root(".")

    def step() -> None:
        _own_namespaces()
        _in_child(guest)

    try:
        _in_child(step)
    except _LackingError as error:
        raise _LackingError(
            f"{error}: in a container, give it an unmasked /proc and no seccomp or AppArmor profile"
        ) from None
    return "tmpfs, proc, binds and a new root can be mounted"


def _fuse() -> str:
    if not os.path.exists("/dev/fuse"):
        raise _LackingError("there is no /dev/fuse: run modprobe fuse, or give the container that device")

    def mount(path: str) -> None:
        uid, gid = os.geteuid(), os.getegid()
        namespaces.unshare(namespaces.NEWUSER | namespaces.NEWNS)
        namespaces.map_ids(namespaces.GUEST_UID, namespaces.GUEST_UID, uid, gid)
        device = os.open(path, os.O_RDWR)
        os.close(mounts.fuse(device, namespaces.GUEST_UID))

    def step() -> None:
        if not namespaces.has_ids_to_give():
            mount("/dev/fuse")
            return
        namespaces.unshare(namespaces.NEWNS)
        mounts.make_private()
        mounts.attach(mounts.file_system("tmpfs", {"size": "64k", "mode": "0755"}, mounts.NO_SUID), "/dev")
        root.make_device("/dev/fuse", root.FUSE_DEVICE)
        namespaces.take_ids(namespaces.UID_BASE)
        namespaces.set_dumpable(True)
        mount("/dev/fuse")

    try:
        _in_child(step)
    except _LackingError as error:
        advice = "" if os.geteuid() == 0 else ": if it may not be opened, run chmod 666 /dev/fuse as root"
        raise _LackingError(f"{error}{advice}") from None
    return "/dev/fuse can be opened and mounted"


def _seccomp() -> str:
    def step() -> None:
        program = syscall_filter.guest_filter(programs=False)
        namespaces.no_new_privileges()
        libc.install_filter(program, listened=True)
        try:
            libc.system_call("clone3", None, 0)  # refused by the filter itself: nobody listens here
        except OSError as error:
            if error.errno == errno.ENOSYS:
                return
        raise _LackingError("a filter was installed, and does nothing")

    _in_child(step)
    return "filters can be installed"


def _landlock() -> str:
    version = landlock.abi()
    if version < landlock.SCOPE_ABI:
        raise _LackingError(
            f"ABI {version}: from {landlock.SCOPE_ABI} on (Linux 6.12) supervisors are kept apart by it too; is landlock in lsm=?"
        )

    def step() -> None:
        namespaces.no_new_privileges()
        landlock.enter_domain()

    _in_child(step)
    return f"ABI {version}"


def _process_descriptors() -> str:
    os.close(os.pidfd_open(os.getpid()))
    return "processes have descriptors"


def _clock() -> str:
    def step() -> None:
        try:
            vdso.install()
        except vdso.VdsoError as error:
            raise _LackingError(f"{error}: enclaves have the server's clock, not their client's") from None

    return _in_child(step) or "enclaves can have their client's"


def _identities() -> str:
    if namespaces.has_ids_to_give():
        return "root: each enclave has a user id of its own"
    if os.geteuid() == 0:
        raise _LackingError(
            "root in a container that maps too few user ids: one for all enclaves, kept apart by namespaces only"
        )
    raise _LackingError(f"user id {os.geteuid()} for all enclaves: they are kept apart by namespaces and Landlock only")


_UNCOUNTED = {
    "unix_diag": "not what waits in its sockets",
    "netlink_diag": "not what would wait in netlink sockets, so it has none, and no lists of interfaces",
}


def _memory() -> str:
    try:
        with namespaces.open_diagnosis() as diagnosis:
            told = {"unix_diag": socket_memory.queued(diagnosis), "netlink_diag": socket_memory.listed(diagnosis)}
    except OSError:
        told = {"unix_diag": None, "netlink_diag": None}
    lacking = [module for module, size in told.items() if size is None]
    if lacking:
        consequences = [_UNCOUNTED[module] for module in lacking]
        raise _LackingError(
            f"an enclave's processes together are watched, but {', and '.join(consequences)}: run"
            f" modprobe -a {' '.join(lacking)} as root"
        )
    try:
        version = memory_group.find().version.name
    except memory_group.NoGroupError as error:
        raise _LackingError(
            f"an enclave's processes together are watched, but the kernel does not bound them ({error}): one that means harm"
            " can take more for some seconds"
        ) from None
    return (
        "of each process limited by the kernel, of an enclave's processes together watched by its supervisor and bounded by"
        f" the kernel ({version})"
    )


# Name, whether enclaves need it, and the probe.
PROBES: tuple[tuple[str, bool, Callable[[], str]], ...] = (
    ("kernel", True, _kernel),
    ("architecture", True, _architecture),
    ("python", True, _python),
    ("user namespaces", True, _user_namespaces),
    ("namespaces", True, _namespaces),
    ("mounts", True, _mounts),
    ("fuse", True, _fuse),
    ("seccomp", True, _seccomp),
    ("process descriptors", True, _process_descriptors),
    ("landlock", False, _landlock),
    ("clock", False, _clock),
    ("user ids", False, _identities),
    ("memory", False, _memory),
)
