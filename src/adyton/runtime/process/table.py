"""One row per system call: its numbers, and what becomes of it in an enclave. The whole truth about them.

    Row(name, number on x86-64, number on arm64, group, action, checks, note)

A number is None where the architecture has no such call. LOCAL: the guest's kernel does it, within the guest's namespaces and its
file tree. Emulated(how): the supervisor does it in the kernel's stead. Refused(errno, reason): it fails with that errno and does
nothing. `checks` narrow a call by its arguments; the filter sees registers only, so no check follows a pointer. `note`: what a local call does
otherwise than outside. A call that has no
row fails with ENOSYS, as it would on an older kernel, and so does every x32 call; a call of another architecture ends the process.
What is refused goes to the supervisor, which counts it, unless it is made `often`.

The filter, `adyton syscalls` and the documentation are derived from these rows. Sources: the kernel's
arch/x86/entry/syscalls/syscall_64.tbl and scripts/syscall.tbl of Linux 7.0, and the calls' man pages.
"""

from __future__ import annotations

import os

from adyton.runtime.process.table_rows import (
    Architecture,
    Both,
    Emulated,
    Group,
    Has,
    Is,
    Never,
    Only,
    Refused,
    Row,
    Within,
)

LOCAL = None

SYNC = Emulated(
    "what the enclave did to the client's files is durable there; what other programs of the server wrote is not its business"
)
OBSOLETE = "no program of today needs it"
WATCHING = Emulated(
    "a socket that gives events: what the enclave does to files, and what other programs on the client do; see docs/files.md"
)
WATCH = Emulated("of the client's files and private ones; EACCES for what the enclave has of the server")
WHOLE_FILE_SYSTEM = "it acts on a whole file system, past the paths that were allowed"
ASYNC_IO = "the kernel would act outside the filter; programs fall back on threads"
PLACEMENT = "it moves memory of other processes too"
FAULTS = "it can hold the kernel in the middle of an operation"
OTHERS = "it reaches into another process"
CLONE3 = "its flags lie behind a pointer, where no filter sees them; libraries fall back on clone"
CLIENT_CLOCK = "realtime is the client's where it is asked for as the C library does, by the vDSO; else the server's"
ABSOLUTE = "a time on the realtime clock to wait for is the server's"
EXEC = "only programs that the image's manifest names, else EACCES"
FILTERS = "an enclave has its filter already"
CLOCK = "the clock is the server's and the client's"
MOUNTS = "the file tree is fixed when the enclave starts"
NAMESPACES = "the namespaces are fixed when the enclave starts"
MOUNT_TABLE = "the mount table is not the enclave's business"
ADMINISTRATION = "it administers the server"
KERNEL_PROGRAMS = "it puts programs or probes into the kernel"
KEYS = "the kernel's keys are shared with the server"
SECURITY_MODULES = "the server's security modules are not the enclave's business"
PROBES = (
    "no filter is asked: it is the call of the kernel's own trampolines, and from elsewhere ends the process by SIGILL"
)

# CLONE_NEW*: NS CGROUP UTS IPC USER PID NET (sched.h). NEWTIME is a flag of clone3 and unshare only: in clone its bit is a part
# of the exit signal.
_CLONE_NEW = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
NO_NAMESPACES = (Only(0, _CLONE_NEW, (0,), Refused("EPERM", NAMESPACES)),)
# CLONE_THREAD without CLONE_FILES
_CLONE_FILES, _CLONE_THREAD = 0x400, 0x10000
SAME_FILES = (
    Only(
        0,
        _CLONE_FILES | _CLONE_THREAD,
        (0, _CLONE_FILES, _CLONE_FILES | _CLONE_THREAD),
        Refused("EINVAL", "a thread has the descriptors of its process, which are counted"),
    ),
)

# The family is AF_UNIX, 1.
UNIX_PAIRS = (Only(0, 0xFFFFFFFF, (1,), Refused("EACCES", "only AF_UNIX pairs are local")),)

# TIOCSTI, TIOCLINUX, TIOCSETD (asm-generic/ioctls.h); FS_IOC_SETFLAGS and FIBMAP need no refusal: FUSE answers them
NO_TERMINAL_TRICKS = (
    Never(
        1, (0x5412, 0x541C, 0x5423), Refused("EPERM", "it puts input into a terminal, or changes its line discipline")
    ),
)

# What C libraries and interpreters use (linux/prctl.h): GET_PDEATHSIG, GET_DUMPABLE, NAME, GET_SECCOMP, CAPBSET_READ,
# TIMERSLACK, CHILD_SUBREAPER, NO_NEW_PRIVS, THP_DISABLE, the vector length, pointer authentication and tagged address options,
# MDWE, SET_VMA. Not PDEATHSIG and SET_DUMPABLE: a guest must die with its supervisor, which must be able to look into it.
PROCESS_OPTIONS = (
    Only(
        0,
        0xFFFFFFFF,
        (2, 3, 15, 16, 21, 23, 29, 30, 36, 37, 38, 39, 41, 42, 50, 51, 54, 55, 56, 60, 61, 65, 66, 0x53564D41),
        Refused("EINVAL", "not an option that a program in an enclave needs"),
    ),
)

# The command is F_NOTIFY, see linux/fcntl.h.
NO_WATCHES = (
    Never(1, (1026,), Refused("EINVAL", "it reports what the server's other programs do to files that they share")),
)

# PER_LINUX, and the value that only asks (personality(2))
PERSONALITIES = (Only(0, 0xFFFFFFFF, (0, 0xFFFFFFFF), Refused("EPERM", "it weakens the layout of memory")),)

BOUNDLESS = "no limit of an enclave bounds what it takes; POSIX shared memory and semaphores are in /dev/shm, POSIX message queues are bounded"
PINNED = "a pipe would keep huge pages of memory that no process has any more, and nothing would count them"
MEMORY_FILE = Emulated("an unnamed file of the enclave's /dev/shm, which bounds it; it cannot be sealed")

ON_STAND_IN = "on the client's socket, if it stands for one; else locally"
NAMES = Emulated("names of the client's socket, if it stands for one; else locally")
ON_SOCKET = Emulated(ON_STAND_IN)
# The family is AF_UNIX: sockets among the enclave's own processes.
SOCKET = Emulated("a stand-in for a socket on the client; AF_UNIX is local", (Is(0, 1, 32),))
_MSG_OOB = 0x1
_MAX_DATAGRAM = 65507  # bytes, of UDP over IPv4
# What sendmsg and recvmsg are about lies behind a pointer, and most of it is no business of ours. So datagram sockets get descriptors by
# which the filter knows them, as long as there are any free: the last ones that select can have, which few programs come to otherwise.
DATAGRAM_DESCRIPTORS = range(896, 1024)
_OF_DATAGRAMS = Within(0, DATAGRAM_DESCRIPTORS.start, DATAGRAM_DESCRIPTORS.stop)
# A null pointer in place of an address
SEND_TO = Emulated(
    "a datagram to an address, and urgent data of a stream (MSG_OOB; of a unix socket it is EOPNOTSUPP); else it is local, but of what is"
    " too large for a datagram",
    (Is(4, 0),),
    (Has(3, _MSG_OOB), Both(_OF_DATAGRAMS, Within(2, _MAX_DATAGRAM + 1, 1 << 31))),
)
MESSAGE = Emulated(
    f"a datagram with its address and what goes with it, of descriptors {DATAGRAM_DESCRIPTORS[0]} to {DATAGRAM_DESCRIPTORS[-1]}, which "
    "datagram sockets have; else it is local",
    but=(_OF_DATAGRAMS,),
)
COPY = Emulated(
    f"a copy of a datagram socket's descriptor has one of {DATAGRAM_DESCRIPTORS[0]} to {DATAGRAM_DESCRIPTORS[-1]} too; else it is local",
    but=(_OF_DATAGRAMS,),
)
# For one byte too, by which Python's ssl finds out whether a socket is connected: a stand-in is a connected pair, to the kernel. And of
# datagram sockets, which may have an error to tell.
RECEIVE_FROM = Emulated(
    "a datagram with its sender; without the sender it is local, but of datagram sockets, and ENOTCONN for one byte of a stream that is not connected",
    (Is(4, 0),),
    (Is(2, 1), _OF_DATAGRAMS),
)

OUT_OF_BAND = Refused(
    "EOPNOTSUPP",
    "a stand-in has no out-of-band data, and the kernel's own on unix sockets has let sandboxed programs out (CVE-2025-38236)",
)
NOT_OUT_OF_BAND = {argument: (Only(argument, _MSG_OOB, (0,), OUT_OF_BAND),) for argument in (2, 3)}
# MSG_ERRQUEUE, for which a unix socket gives its data
_NO_ERRORS = Refused("EAGAIN", "a stand-in has no queue of errors", often=True)
NOT_OF_ERRORS = {
    argument: (*NOT_OUT_OF_BAND[argument], Only(argument, 0x2000, (0,), _NO_ERRORS)) for argument in (2, 3)
}

# fmt: off
ROWS: tuple[Row, ...] = (
    # -- file --
    Row("open", 2, None, "file", LOCAL),
    Row("openat", 257, 56, "file", LOCAL),
    Row("openat2", 437, 437, "file", LOCAL),
    Row("creat", 85, None, "file", LOCAL),
    Row("close", 3, 57, "file", LOCAL),
    Row("close_range", 436, 436, "file", LOCAL),
    Row("read", 0, 63, "file", LOCAL),
    Row("write", 1, 64, "file", LOCAL),
    Row("readv", 19, 65, "file", LOCAL),
    Row("writev", 20, 66, "file", LOCAL),
    Row("pread64", 17, 67, "file", LOCAL),
    Row("pwrite64", 18, 68, "file", LOCAL),
    Row("preadv", 295, 69, "file", LOCAL),
    Row("pwritev", 296, 70, "file", LOCAL),
    Row("preadv2", 327, 286, "file", LOCAL),
    Row("pwritev2", 328, 287, "file", LOCAL),
    Row("lseek", 8, 62, "file", LOCAL),
    Row("stat", 4, None, "file", LOCAL),
    Row("fstat", 5, 80, "file", LOCAL),
    Row("lstat", 6, None, "file", LOCAL),
    Row("newfstatat", 262, 79, "file", LOCAL),
    Row("statx", 332, 291, "file", LOCAL),
    Row("access", 21, None, "file", LOCAL),
    Row("faccessat", 269, 48, "file", LOCAL),
    Row("faccessat2", 439, 439, "file", LOCAL),
    Row("readlink", 89, None, "file", LOCAL),
    Row("readlinkat", 267, 78, "file", LOCAL),
    Row("rename", 82, None, "file", LOCAL),
    Row("renameat", 264, 38, "file", LOCAL),
    Row("renameat2", 316, 276, "file", LOCAL),
    Row("mkdir", 83, None, "file", LOCAL),
    Row("mkdirat", 258, 34, "file", LOCAL),
    Row("rmdir", 84, None, "file", LOCAL),
    Row("unlink", 87, None, "file", LOCAL),
    Row("unlinkat", 263, 35, "file", LOCAL),
    Row("link", 86, None, "file", LOCAL),
    Row("linkat", 265, 37, "file", LOCAL),
    Row("symlink", 88, None, "file", LOCAL),
    Row("symlinkat", 266, 36, "file", LOCAL),
    Row("mknod", 133, None, "file", LOCAL),
    Row("mknodat", 259, 33, "file", LOCAL),
    Row("chmod", 90, None, "file", LOCAL),
    Row("fchmod", 91, 52, "file", LOCAL),
    Row("fchmodat", 268, 53, "file", LOCAL),
    Row("fchmodat2", 452, 452, "file", LOCAL),
    Row("chown", 92, None, "file", LOCAL),
    Row("fchown", 93, 55, "file", LOCAL),
    Row("lchown", 94, None, "file", LOCAL),
    Row("fchownat", 260, 54, "file", LOCAL),
    Row("utime", 132, None, "file", LOCAL),
    Row("utimes", 235, None, "file", LOCAL),
    Row("futimesat", 261, None, "file", LOCAL),
    Row("utimensat", 280, 88, "file", LOCAL),
    Row("truncate", 76, 45, "file", LOCAL),
    Row("ftruncate", 77, 46, "file", LOCAL),
    Row("fallocate", 285, 47, "file", LOCAL),
    Row("fsync", 74, 82, "file", LOCAL),
    Row("fdatasync", 75, 83, "file", LOCAL),
    Row("sync_file_range", 277, 84, "file", LOCAL),
    Row("syncfs", 306, 267, "file", SYNC),
    Row("sync", 162, 81, "file", SYNC),
    Row("getdents", 78, None, "file", LOCAL),
    Row("getdents64", 217, 61, "file", LOCAL),
    Row("getcwd", 79, 17, "file", LOCAL),
    Row("chdir", 80, 49, "file", LOCAL),
    Row("fchdir", 81, 50, "file", LOCAL),
    Row("umask", 95, 166, "file", LOCAL),
    Row("statfs", 137, 43, "file", LOCAL),
    Row("fstatfs", 138, 44, "file", LOCAL),
    Row("ustat", 136, None, "file", Refused("ENOSYS", OBSOLETE)),
    Row("flock", 73, 32, "file", LOCAL),
    Row("fcntl", 72, 25, "file", COPY, NO_WATCHES),
    Row("ioctl", 16, 29, "file", LOCAL, NO_TERMINAL_TRICKS),
    Row("dup", 32, 23, "file", COPY),
    Row("dup2", 33, None, "file", LOCAL),
    Row("dup3", 292, 24, "file", LOCAL),
    Row("sendfile", 40, 71, "file", LOCAL),
    Row("splice", 275, 76, "file", LOCAL),
    Row("tee", 276, 77, "file", LOCAL),
    Row("vmsplice", 278, 75, "file", Refused("ENOSYS", PINNED)),
    Row("copy_file_range", 326, 285, "file", LOCAL),
    Row("readahead", 187, 213, "file", LOCAL),
    Row("fadvise64", 221, 223, "file", LOCAL),
    Row("cachestat", 451, 451, "file", LOCAL),
    Row("setxattr", 188, 5, "file", LOCAL),
    Row("lsetxattr", 189, 6, "file", LOCAL),
    Row("fsetxattr", 190, 7, "file", LOCAL),
    Row("getxattr", 191, 8, "file", LOCAL),
    Row("lgetxattr", 192, 9, "file", LOCAL),
    Row("fgetxattr", 193, 10, "file", LOCAL),
    Row("listxattr", 194, 11, "file", LOCAL),
    Row("llistxattr", 195, 12, "file", LOCAL),
    Row("flistxattr", 196, 13, "file", LOCAL),
    Row("removexattr", 197, 14, "file", LOCAL),
    Row("lremovexattr", 198, 15, "file", LOCAL),
    Row("fremovexattr", 199, 16, "file", LOCAL),
    Row("setxattrat", 463, 463, "file", LOCAL),
    Row("getxattrat", 464, 464, "file", LOCAL),
    Row("listxattrat", 465, 465, "file", LOCAL),
    Row("removexattrat", 466, 466, "file", LOCAL),
    Row("file_getattr", 468, 468, "file", LOCAL),
    Row("file_setattr", 469, 469, "file", LOCAL),
    Row("inotify_init", 253, None, "file", WATCHING),
    Row("inotify_init1", 294, 26, "file", WATCHING),
    Row("inotify_add_watch", 254, 27, "file", WATCH),
    Row("inotify_rm_watch", 255, 28, "file", WATCH),
    Row("fanotify_init", 300, 262, "file", Refused("EPERM", WHOLE_FILE_SYSTEM)),
    Row("fanotify_mark", 301, 263, "file", Refused("EPERM", WHOLE_FILE_SYSTEM)),
    Row("name_to_handle_at", 303, 264, "file", Refused("EPERM", WHOLE_FILE_SYSTEM)),
    Row("open_by_handle_at", 304, 265, "file", Refused("EPERM", WHOLE_FILE_SYSTEM)),
    Row("io_setup", 206, 0, "file", Refused("ENOSYS", ASYNC_IO)),
    Row("io_destroy", 207, 1, "file", Refused("ENOSYS", ASYNC_IO)),
    Row("io_submit", 209, 2, "file", Refused("ENOSYS", ASYNC_IO)),
    Row("io_cancel", 210, 3, "file", Refused("ENOSYS", ASYNC_IO)),
    Row("io_getevents", 208, 4, "file", Refused("ENOSYS", ASYNC_IO)),
    Row("io_pgetevents", 333, 292, "file", Refused("ENOSYS", ASYNC_IO)),
    Row("io_uring_setup", 425, 425, "file", Refused("ENOSYS", ASYNC_IO)),
    Row("io_uring_enter", 426, 426, "file", Refused("ENOSYS", ASYNC_IO)),
    Row("io_uring_register", 427, 427, "file", Refused("ENOSYS", ASYNC_IO)),
    Row("sysfs", 139, None, "file", Refused("ENOSYS", OBSOLETE)),
    Row("lookup_dcookie", 212, 18, "file", Refused("ENOSYS", OBSOLETE)),
    Row("quotactl", 179, 60, "file", Refused("EPERM", WHOLE_FILE_SYSTEM)),
    Row("quotactl_fd", 443, 443, "file", Refused("EPERM", WHOLE_FILE_SYSTEM)),
    # -- event --
    Row("poll", 7, None, "event", LOCAL),
    Row("ppoll", 271, 73, "event", LOCAL),
    Row("select", 23, None, "event", LOCAL),
    Row("pselect6", 270, 72, "event", LOCAL),
    Row("epoll_create", 213, None, "event", LOCAL),
    Row("epoll_create1", 291, 20, "event", LOCAL),
    Row("epoll_ctl", 233, 21, "event", LOCAL),
    Row("epoll_wait", 232, None, "event", LOCAL),
    Row("epoll_pwait", 281, 22, "event", LOCAL),
    Row("epoll_pwait2", 441, 441, "event", LOCAL),
    Row("epoll_ctl_old", 214, None, "event", Refused("ENOSYS", OBSOLETE)),
    Row("epoll_wait_old", 215, None, "event", Refused("ENOSYS", OBSOLETE)),
    Row("eventfd", 284, None, "event", LOCAL),
    Row("eventfd2", 290, 19, "event", LOCAL),
    Row("signalfd", 282, None, "event", LOCAL),
    Row("signalfd4", 289, 74, "event", LOCAL),
    Row("timerfd_create", 283, 85, "event", LOCAL),
    Row("timerfd_settime", 286, 86, "event", LOCAL, note=ABSOLUTE),
    Row("timerfd_gettime", 287, 87, "event", LOCAL),
    Row("pipe", 22, None, "event", LOCAL),
    Row("pipe2", 293, 59, "event", LOCAL),
    # -- net --
    Row("socket", 41, 198, "net", SOCKET),
    Row("socketpair", 53, 199, "net", LOCAL, UNIX_PAIRS),
    Row("connect", 42, 203, "net", ON_SOCKET),
    Row("bind", 49, 200, "net", ON_SOCKET),
    Row("listen", 50, 201, "net", ON_SOCKET),
    Row("accept", 43, 202, "net", ON_SOCKET),
    Row("accept4", 288, 242, "net", ON_SOCKET),
    Row("getsockname", 51, 204, "net", NAMES),
    Row("getpeername", 52, 205, "net", NAMES),
    Row("getsockopt", 55, 209, "net", ON_SOCKET),
    Row("setsockopt", 54, 208, "net", ON_SOCKET),
    Row("shutdown", 48, 210, "net", ON_SOCKET),
    Row("sendto", 44, 206, "net", SEND_TO),
    Row("recvfrom", 45, 207, "net", RECEIVE_FROM, NOT_OF_ERRORS[3]),
    Row("sendmsg", 46, 211, "net", MESSAGE, NOT_OUT_OF_BAND[2]),
    Row("recvmsg", 47, 212, "net", MESSAGE, NOT_OF_ERRORS[2]),
    Row("sendmmsg", 307, 269, "net", MESSAGE, NOT_OUT_OF_BAND[3]),
    Row("recvmmsg", 299, 243, "net", MESSAGE, NOT_OF_ERRORS[3]),
    # -- memory --
    Row("mmap", 9, 222, "memory", LOCAL),
    Row("munmap", 11, 215, "memory", LOCAL),
    Row("mprotect", 10, 226, "memory", LOCAL),
    Row("mremap", 25, 216, "memory", LOCAL),
    Row("brk", 12, 214, "memory", LOCAL),
    Row("madvise", 28, 233, "memory", LOCAL),
    Row("msync", 26, 227, "memory", LOCAL),
    Row("mincore", 27, 232, "memory", LOCAL),
    Row("mlock", 149, 228, "memory", LOCAL),
    Row("mlock2", 325, 284, "memory", LOCAL),
    Row("munlock", 150, 229, "memory", LOCAL),
    Row("mlockall", 151, 230, "memory", LOCAL),
    Row("munlockall", 152, 231, "memory", LOCAL),
    Row("mseal", 462, 462, "memory", LOCAL),
    Row("memfd_create", 319, 279, "memory", MEMORY_FILE),
    Row("memfd_secret", 447, 447, "memory", Refused("ENOSYS", BOUNDLESS)),
    Row("membarrier", 324, 283, "memory", LOCAL),
    Row("pkey_alloc", 330, 289, "memory", LOCAL),
    Row("pkey_free", 331, 290, "memory", LOCAL),
    Row("pkey_mprotect", 329, 288, "memory", LOCAL),
    Row("map_shadow_stack", 453, 453, "memory", LOCAL),
    Row("mbind", 237, 235, "memory", LOCAL),
    Row("set_mempolicy", 238, 237, "memory", LOCAL),
    Row("get_mempolicy", 239, 236, "memory", LOCAL),
    Row("set_mempolicy_home_node", 450, 450, "memory", LOCAL),
    Row("migrate_pages", 256, 238, "memory", Refused("EPERM", PLACEMENT)),
    Row("move_pages", 279, 239, "memory", Refused("EPERM", PLACEMENT)),
    Row("remap_file_pages", 216, 234, "memory", Refused("ENOSYS", OBSOLETE)),
    Row("userfaultfd", 323, 282, "memory", Refused("EPERM", FAULTS)),
    Row("process_madvise", 440, 440, "memory", Refused("EPERM", OTHERS)),
    Row("process_mrelease", 448, 448, "memory", Refused("EPERM", OTHERS)),
    Row("process_vm_readv", 310, 270, "memory", Refused("EPERM", OTHERS)),
    Row("process_vm_writev", 311, 271, "memory", Refused("EPERM", OTHERS)),
    # -- process --
    Row("clone", 56, 220, "process", LOCAL, NO_NAMESPACES + SAME_FILES),
    Row("clone3", 435, 435, "process", Refused("ENOSYS", CLONE3, often=True)),
    Row("fork", 57, None, "process", LOCAL),
    Row("vfork", 58, None, "process", LOCAL),
    Row("execve", 59, 221, "process", LOCAL, note=EXEC),
    Row("execveat", 322, 281, "process", LOCAL, note=EXEC),
    Row("exit", 60, 93, "process", LOCAL),
    Row("exit_group", 231, 94, "process", LOCAL),
    Row("wait4", 61, 260, "process", LOCAL),
    Row("waitid", 247, 95, "process", LOCAL),
    Row("getpid", 39, 172, "process", LOCAL),
    Row("getppid", 110, 173, "process", LOCAL),
    Row("gettid", 186, 178, "process", LOCAL),
    Row("getpgid", 121, 155, "process", LOCAL),
    Row("getpgrp", 111, None, "process", LOCAL),
    Row("setpgid", 109, 154, "process", LOCAL),
    Row("getsid", 124, 156, "process", LOCAL),
    Row("setsid", 112, 157, "process", LOCAL),
    Row("getuid", 102, 174, "process", LOCAL),
    Row("geteuid", 107, 175, "process", LOCAL),
    Row("getgid", 104, 176, "process", LOCAL),
    Row("getegid", 108, 177, "process", LOCAL),
    Row("getresuid", 118, 148, "process", LOCAL),
    Row("getresgid", 120, 150, "process", LOCAL),
    Row("getgroups", 115, 158, "process", LOCAL),
    Row("setuid", 105, 146, "process", LOCAL),
    Row("setgid", 106, 144, "process", LOCAL),
    Row("setreuid", 113, 145, "process", LOCAL),
    Row("setregid", 114, 143, "process", LOCAL),
    Row("setresuid", 117, 147, "process", LOCAL),
    Row("setresgid", 119, 149, "process", LOCAL),
    Row("setfsuid", 122, 151, "process", LOCAL),
    Row("setfsgid", 123, 152, "process", LOCAL),
    Row("setgroups", 116, 159, "process", LOCAL),
    Row("capget", 125, 90, "process", LOCAL),
    Row("capset", 126, 91, "process", LOCAL),
    Row("prctl", 157, 167, "process", LOCAL, PROCESS_OPTIONS),
    Row("arch_prctl", 158, None, "process", LOCAL),
    Row("personality", 135, 92, "process", LOCAL, PERSONALITIES),
    Row("set_tid_address", 218, 96, "process", LOCAL),
    Row("set_robust_list", 273, 99, "process", LOCAL),
    Row("get_robust_list", 274, 100, "process", LOCAL),
    Row("rseq", 334, 293, "process", LOCAL),
    Row("rseq_slice_yield", 471, 471, "process", LOCAL),
    Row("set_thread_area", 205, None, "process", Refused("ENOSYS", OBSOLETE)),
    Row("get_thread_area", 211, None, "process", Refused("ENOSYS", OBSOLETE)),
    Row("modify_ldt", 154, None, "process", Refused("ENOSYS", OBSOLETE)),
    Row("futex", 202, 98, "process", LOCAL, note=ABSOLUTE),
    Row("futex_waitv", 449, 449, "process", LOCAL, note=ABSOLUTE),
    Row("futex_wake", 454, 454, "process", LOCAL),
    Row("futex_wait", 455, 455, "process", LOCAL, note=ABSOLUTE),
    Row("futex_requeue", 456, 456, "process", LOCAL),
    Row("getrlimit", 97, 163, "process", LOCAL),
    Row("setrlimit", 160, 164, "process", LOCAL),
    Row("prlimit64", 302, 261, "process", LOCAL),
    Row("getrusage", 98, 165, "process", LOCAL),
    Row("times", 100, 153, "process", LOCAL),
    Row("sched_yield", 24, 124, "process", LOCAL),
    Row("sched_setaffinity", 203, 122, "process", LOCAL),
    Row("sched_getaffinity", 204, 123, "process", LOCAL),
    Row("sched_setparam", 142, 118, "process", LOCAL),
    Row("sched_getparam", 143, 121, "process", LOCAL),
    Row("sched_setscheduler", 144, 119, "process", LOCAL),
    Row("sched_getscheduler", 145, 120, "process", LOCAL),
    Row("sched_setattr", 314, 274, "process", LOCAL),
    Row("sched_getattr", 315, 275, "process", LOCAL),
    Row("sched_get_priority_max", 146, 125, "process", LOCAL),
    Row("sched_get_priority_min", 147, 126, "process", LOCAL),
    Row("sched_rr_get_interval", 148, 127, "process", LOCAL),
    Row("getpriority", 140, 141, "process", LOCAL),
    Row("setpriority", 141, 140, "process", LOCAL),
    Row("ioprio_get", 252, 31, "process", LOCAL),
    Row("ioprio_set", 251, 30, "process", LOCAL),
    Row("getcpu", 309, 168, "process", LOCAL),
    Row("pidfd_open", 434, 434, "process", LOCAL),
    Row("pidfd_send_signal", 424, 424, "process", LOCAL),
    Row("pidfd_getfd", 438, 438, "process", Refused("EPERM", OTHERS)),
    Row("kcmp", 312, 272, "process", Refused("EPERM", OTHERS)),
    Row("ptrace", 101, 117, "process", Refused("EPERM", OTHERS)),
    Row("uname", 63, 160, "process", LOCAL),
    Row("sysinfo", 99, 179, "process", LOCAL),
    Row("getrandom", 318, 278, "process", LOCAL),
    Row("landlock_create_ruleset", 444, 444, "process", LOCAL),
    Row("landlock_add_rule", 445, 445, "process", LOCAL),
    Row("landlock_restrict_self", 446, 446, "process", LOCAL),
    Row("seccomp", 317, 277, "process", Refused("EINVAL", FILTERS)),
    # -- signal --
    Row("rt_sigaction", 13, 134, "signal", LOCAL),
    Row("rt_sigprocmask", 14, 135, "signal", LOCAL),
    Row("rt_sigpending", 127, 136, "signal", LOCAL),
    Row("rt_sigtimedwait", 128, 137, "signal", LOCAL),
    Row("rt_sigqueueinfo", 129, 138, "signal", LOCAL),
    Row("rt_tgsigqueueinfo", 297, 240, "signal", LOCAL),
    Row("rt_sigsuspend", 130, 133, "signal", LOCAL),
    Row("rt_sigreturn", 15, 139, "signal", LOCAL),
    Row("sigaltstack", 131, 132, "signal", LOCAL),
    Row("kill", 62, 129, "signal", LOCAL),
    Row("tkill", 200, 130, "signal", LOCAL),
    Row("tgkill", 234, 131, "signal", LOCAL),
    Row("pause", 34, None, "signal", LOCAL),
    Row("restart_syscall", 219, 128, "signal", LOCAL),
    # -- time --
    Row("time", 201, None, "time", LOCAL, note=CLIENT_CLOCK),
    Row("gettimeofday", 96, 169, "time", LOCAL, note=CLIENT_CLOCK),
    Row("settimeofday", 164, 170, "time", Refused("EPERM", CLOCK)),
    Row("clock_gettime", 228, 113, "time", LOCAL, note=CLIENT_CLOCK),
    Row("clock_settime", 227, 112, "time", Refused("EPERM", CLOCK)),
    Row("clock_getres", 229, 114, "time", LOCAL),
    Row("clock_nanosleep", 230, 115, "time", LOCAL, note=ABSOLUTE),
    Row("clock_adjtime", 305, 266, "time", Refused("EPERM", CLOCK)),
    Row("adjtimex", 159, 171, "time", Refused("EPERM", CLOCK)),
    Row("nanosleep", 35, 101, "time", LOCAL),
    Row("alarm", 37, None, "time", LOCAL),
    Row("getitimer", 36, 102, "time", LOCAL),
    Row("setitimer", 38, 103, "time", LOCAL),
    Row("timer_create", 222, 107, "time", LOCAL),
    Row("timer_settime", 223, 110, "time", LOCAL, note=ABSOLUTE),
    Row("timer_gettime", 224, 108, "time", LOCAL),
    Row("timer_getoverrun", 225, 109, "time", LOCAL),
    Row("timer_delete", 226, 111, "time", LOCAL),
    # -- ipc --
    Row("shmget", 29, 194, "ipc", Refused("ENOSYS", BOUNDLESS)),
    Row("shmat", 30, 196, "ipc", LOCAL),
    Row("shmctl", 31, 195, "ipc", LOCAL),
    Row("shmdt", 67, 197, "ipc", LOCAL),
    Row("semget", 64, 190, "ipc", Refused("ENOSYS", BOUNDLESS)),
    Row("semop", 65, 193, "ipc", LOCAL),
    Row("semctl", 66, 191, "ipc", LOCAL),
    Row("semtimedop", 220, 192, "ipc", LOCAL),
    Row("msgget", 68, 186, "ipc", Refused("ENOSYS", BOUNDLESS)),
    Row("msgsnd", 69, 189, "ipc", LOCAL),
    Row("msgrcv", 70, 188, "ipc", LOCAL),
    Row("msgctl", 71, 187, "ipc", LOCAL),
    Row("mq_open", 240, 180, "ipc", LOCAL),
    Row("mq_unlink", 241, 181, "ipc", LOCAL),
    Row("mq_timedsend", 242, 182, "ipc", LOCAL, note=ABSOLUTE),
    Row("mq_timedreceive", 243, 183, "ipc", LOCAL, note=ABSOLUTE),
    Row("mq_notify", 244, 184, "ipc", LOCAL),
    Row("mq_getsetattr", 245, 185, "ipc", LOCAL),
    # -- mount --
    Row("mount", 165, 40, "mount", Refused("EPERM", MOUNTS)),
    Row("umount2", 166, 39, "mount", Refused("EPERM", MOUNTS)),
    Row("pivot_root", 155, 41, "mount", Refused("EPERM", MOUNTS)),
    Row("chroot", 161, 51, "mount", Refused("EPERM", MOUNTS)),
    Row("unshare", 272, 97, "mount", Refused("EPERM", NAMESPACES)),
    Row("setns", 308, 268, "mount", Refused("EPERM", NAMESPACES)),
    Row("open_tree", 428, 428, "mount", Refused("EPERM", MOUNTS)),
    Row("open_tree_attr", 467, 467, "mount", Refused("EPERM", MOUNTS)),
    Row("move_mount", 429, 429, "mount", Refused("EPERM", MOUNTS)),
    Row("fsopen", 430, 430, "mount", Refused("EPERM", MOUNTS)),
    Row("fsconfig", 431, 431, "mount", Refused("EPERM", MOUNTS)),
    Row("fsmount", 432, 432, "mount", Refused("EPERM", MOUNTS)),
    Row("fspick", 433, 433, "mount", Refused("EPERM", MOUNTS)),
    Row("mount_setattr", 442, 442, "mount", Refused("EPERM", MOUNTS)),
    Row("statmount", 457, 457, "mount", Refused("ENOSYS", MOUNT_TABLE)),
    Row("listmount", 458, 458, "mount", Refused("ENOSYS", MOUNT_TABLE)),
    Row("listns", 470, 470, "mount", Refused("ENOSYS", MOUNT_TABLE)),
    # -- system --
    Row("acct", 163, 89, "system", Refused("EPERM", ADMINISTRATION)),
    Row("swapon", 167, 224, "system", Refused("EPERM", ADMINISTRATION)),
    Row("swapoff", 168, 225, "system", Refused("EPERM", ADMINISTRATION)),
    Row("reboot", 169, 142, "system", Refused("EPERM", ADMINISTRATION)),
    Row("sethostname", 170, 161, "system", Refused("EPERM", ADMINISTRATION)),
    Row("setdomainname", 171, 162, "system", Refused("EPERM", ADMINISTRATION)),
    Row("vhangup", 153, 58, "system", Refused("EPERM", ADMINISTRATION)),
    Row("iopl", 172, None, "system", Refused("EPERM", ADMINISTRATION)),
    Row("ioperm", 173, None, "system", Refused("EPERM", ADMINISTRATION)),
    Row("init_module", 175, 105, "system", Refused("EPERM", ADMINISTRATION)),
    Row("finit_module", 313, 273, "system", Refused("EPERM", ADMINISTRATION)),
    Row("delete_module", 176, 106, "system", Refused("EPERM", ADMINISTRATION)),
    Row("create_module", 174, None, "system", Refused("ENOSYS", OBSOLETE)),
    Row("query_module", 178, None, "system", Refused("ENOSYS", OBSOLETE)),
    Row("get_kernel_syms", 177, None, "system", Refused("ENOSYS", OBSOLETE)),
    Row("kexec_load", 246, 104, "system", Refused("EPERM", ADMINISTRATION)),
    Row("kexec_file_load", 320, 294, "system", Refused("EPERM", ADMINISTRATION)),
    Row("syslog", 103, 116, "system", Refused("EPERM", ADMINISTRATION)),
    Row("bpf", 321, 280, "system", Refused("EPERM", KERNEL_PROGRAMS)),
    Row("perf_event_open", 298, 241, "system", Refused("EPERM", KERNEL_PROGRAMS)),
    Row("add_key", 248, 217, "system", Refused("ENOSYS", KEYS)),
    Row("request_key", 249, 218, "system", Refused("ENOSYS", KEYS)),
    Row("keyctl", 250, 219, "system", Refused("ENOSYS", KEYS)),
    Row("lsm_get_self_attr", 459, 459, "system", Refused("ENOSYS", SECURITY_MODULES)),
    Row("lsm_set_self_attr", 460, 460, "system", Refused("ENOSYS", SECURITY_MODULES)),
    Row("lsm_list_modules", 461, 461, "system", Refused("ENOSYS", SECURITY_MODULES)),
    Row("nfsservctl", 180, 42, "system", Refused("ENOSYS", OBSOLETE)),
    Row("getpmsg", 181, None, "system", Refused("ENOSYS", OBSOLETE)),
    Row("putpmsg", 182, None, "system", Refused("ENOSYS", OBSOLETE)),
    Row("afs_syscall", 183, None, "system", Refused("ENOSYS", OBSOLETE)),
    Row("tuxcall", 184, None, "system", Refused("ENOSYS", OBSOLETE)),
    Row("security", 185, None, "system", Refused("ENOSYS", OBSOLETE)),
    Row("vserver", 236, None, "system", Refused("ENOSYS", OBSOLETE)),
    Row("uselib", 134, None, "system", Refused("ENOSYS", OBSOLETE)),
    Row("_sysctl", 156, None, "system", Refused("ENOSYS", OBSOLETE)),
    Row("uprobe", 336, None, "system", LOCAL, note=PROBES),
    Row("uretprobe", 335, None, "system", LOCAL, note=PROBES),
)
# fmt: on

# What a program is started by, and what becomes of it where none may be.
PROGRAM_CALLS = ("execve", "execveat")
NO_PROGRAMS = Refused("EACCES", EXEC)

GROUPS: tuple[Group, ...] = ("file", "event", "net", "memory", "process", "signal", "time", "ipc", "mount", "system")

_BY_NAME = {row.name: row for row in ROWS}


def row(name: str) -> Row:
    """The row of the call; KeyError if there is none."""
    return _BY_NAME[name]


def architecture() -> Architecture | None:
    """The machine's, if the process runtime knows it."""
    machine = os.uname().machine
    return machine if machine in ("x86_64", "aarch64") else None  # type: ignore[return-value]


def number(name: str) -> int:
    """The call's number on this machine; LookupError where there is none."""
    here = architecture()
    found = None if here is None else row(name).number(here)
    if found is None:
        raise LookupError(f"no system call {name} on {os.uname().machine}")
    return found
