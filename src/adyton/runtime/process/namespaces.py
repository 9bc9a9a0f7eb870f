"""Namespaces, user ids and capabilities of the calling process. Single-threaded callers only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterable

from adyton.runtime.process.libc import prctl, system_call

# Flags of unshare(2)
NEWNS = 0x00020000
NEWCGROUP = 0x02000000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000

CAP_SYS_CHROOT = 18

GUEST_UID = 1000  # a guest's user and group, as it sees them

# Each enclave of a server that runs as root has the user and group id BASE + pid of its supervisor: ids that no distribution
# gives out, and as many as there can be processes (PID_MAX_LIMIT, proc_sys_kernel(5)).
UID_BASE = 600_000_000
UID_COUNT = 1 << 22

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

_NETLINK_SOCK_DIAG = 4

# C libraries ask for addresses of a family only if an interface has one beside the loopback's own (AI_ADDRCONFIG of getaddrinfo(3)).
# These two are nobody's: the dummy address of RFC 7600, and one of the discard prefix of RFC 6666.
LOOPBACK_ALIASES = ("192.0.0.8", "100::1")

# linux/sockios.h, linux/if.h
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C
_IFF_UP = 1


def unshare(flags: int) -> None:
    """Leave the parent's namespaces of these kinds. With NEWUSER the caller maps its ids next."""
    system_call("unshare", flags)


def map_ids(inside_uid: int, inside_gid: int, outside_uid: int, outside_gid: int) -> None:
    """Give this new user namespace one user and one group, those of its creator. See user_namespaces(7).

    The outside ids are the effective ones from before unshare, as the parent namespace numbers them.
    """
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside_uid} {outside_uid} 1"),
        ("gid_map", f"{inside_gid} {outside_gid} 1"),
    ):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def maps_enclave_ids(uid_map: str) -> bool:
    """Whether a process with this /proc/self/uid_map can take every enclave's user id."""
    for line in uid_map.splitlines():
        inside, _, count = map(int, line.split())
        if inside <= UID_BASE and inside + count >= UID_BASE + UID_COUNT:
            return True
    return False


def has_ids_to_give() -> bool:
    """Whether this process can give each enclave a user id of its own: it is root, in a user namespace that maps them all."""
    if os.geteuid() != 0:
        return False
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}", encoding="ascii") as file:
            if not maps_enclave_ids(file.read()):
                return False
    return True


def take_ids(uid: int, keep: Iterable[int] = ()) -> None:
    """Become that user and group, for good; of the capabilities only `keep` stays."""
    prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    set_capabilities(keep)
    prctl(_PR_SET_KEEPCAPS, 0)


def set_capabilities(capabilities: Iterable[int] = (), *, inherited: bool = False) -> None:
    """Have exactly these, of those that the process has now; what it executes has them too if `inherited`, else none.

    See capset(2), and "ambient" in capabilities(7).
    """
    kept = set(capabilities)
    mask = sum(1 << each for each in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    below = (low, high) if inherited else (0, 0)
    system_call("capset", header, struct.pack("<6I", low, low, below[0], high, high, below[1]))
    if inherited:
        for capability in kept:
            prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def drop_capabilities_for_good() -> None:
    """Have none, and no way to any: bounding and ambient sets are emptied too. Needs CAP_SETPCAP."""
    for capability in range(64):
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # EINVAL: past the kernel's last one
            break
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    set_capabilities()


def no_new_privileges() -> None:
    """Let no exec raise privileges; a seccomp filter needs it."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """SIGKILL when the parent ends. A change of user ids clears it; the caller checks that the parent is still there."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends. See PR_SET_CHILD_SUBREAPER."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(dumpable: bool) -> None:
    """Whether others with this user id can look into the process (and it can write its own /proc files after setuid)."""
    prctl(_PR_SET_DUMPABLE, int(dumpable))


def set_name(name: str) -> None:
    """The name that ps shows, of at most 15 bytes."""
    prctl(_PR_SET_NAME, name.encode())


def open_diagnosis() -> socket.socket:
    """A socket by which the kernel can be asked about the sockets of this network namespace, see sock_diag(7)."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)


def raise_loopback() -> None:
    """Have a loopback interface in this network namespace that says of itself that there is IPv4 and IPv6, see LOOPBACK_ALIASES.

    Where the kernel has no IPv6, it does not say that. Needs CAP_NET_ADMIN over the namespace; netdevice(7).
    """
    address = socket.inet_aton(LOOPBACK_ALIASES[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
        for request, content in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, b"\xff" * 4)):
            fcntl.ioctl(sock, request, struct.pack("16sHH4s16x", b"lo:0", socket.AF_INET, 0, content))
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        content = socket.inet_pton(socket.AF_INET6, LOOPBACK_ALIASES[1])
        fcntl.ioctl(sock, _SIOCSIFADDR, struct.pack("=16sIi", content, 128, socket.if_nametoindex("lo")))


def set_host_name(name: str) -> None:
    """The host name in this uts namespace."""
    system_call("sethostname", name.encode(), len(name))
