"""Seccomp filters: the guest's, from the table, and the supervisor's, a short list. Pure functions to classic BPF.

A filter looks at struct seccomp_data (linux/seccomp.h): the call's number at 0, the architecture at 4, argument n at 16 + 8n, of
which mostly only the low 32 bits are looked at. A program is a list of struct sock_filter; every block below ends in a return on each of
its paths, so that blocks can be put one behind the other.
"""

from __future__ import annotations

import errno
import functools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adyton.errors import PlatformError
from adyton.runtime.process.table import NO_PROGRAMS, PROGRAM_CALLS, ROWS, architecture
from adyton.runtime.process.table_rows import Architecture, Both, Check, Condition, Has, Only, Refused, Within

# seccomp's return values (linux/seccomp.h)
ALLOW = 0x7FFF0000
KILL = 0x80000000  # the whole process
ERRNO = 0x00050000
ASK = 0x7FC00000  # whoever has the listener: SECCOMP_RET_USER_NOTIF

AUDIT_ARCH: Mapping[Architecture, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
X32_BIT = 0x40000000

# The instructions in use (linux/filter.h)
LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP = 0x05  # BPF_JMP | BPF_JA
IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
IF_GREATER_OR_EQUAL = 0x35  # BPF_JMP | BPF_JGE | BPF_K
IF_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_FAR = 255  # the farthest that a conditional jump reaches


@dataclass(frozen=True, slots=True)
class Instruction:
    """struct sock_filter: `true` and `false` are how many instructions a conditional jump leaves out."""

    code: int
    true: int
    false: int
    value: int

    def pack(self) -> bytes:
        return struct.pack("=HBBI", self.code, self.true, self.false, self.value)


Block = list[Instruction]


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a call: refused with `errno` (if not 0) or by a check that does not hold; else allowed.

    `asks`: refusals are the listener's to answer, and so is what is `emulated` (unless all of `local` hold, and none of `but`).
    """

    errno: int = 0
    checks: tuple[Check, ...] = ()
    asks: bool = False
    emulated: bool = False
    local: tuple[Condition, ...] = ()
    but: tuple[Condition, ...] = ()


def _plain(code: int, value: int) -> Instruction:
    return Instruction(code, 0, 0, value)


def _branch(code: int, value: int, if_true: Block, if_false: Block) -> Block:
    """Go on with one of two blocks; either may be of any length."""
    if len(if_false) <= _FAR:
        return [Instruction(code, len(if_false), 0, value), *if_false, *if_true]
    return [Instruction(code, 0, 1, value), _plain(JUMP, len(if_false)), *if_false, *if_true]


def _one_of(values: Sequence[int], if_one: Block, if_none: Block) -> Block:
    """Compare what was loaded with each value."""
    block = if_none
    for value in reversed(values):
        block = _branch(IF_EQUAL, value, if_one, block)
    return block


def _rule(rule: Rule) -> Block:
    if rule.errno:
        return [_plain(RETURN, ASK if rule.asks else ERRNO | rule.errno)]
    block = [_plain(RETURN, ASK if rule.emulated else ALLOW)]
    if rule.local or rule.but:
        ask, block = block, [_plain(RETURN, ALLOW)]
        for condition in rule.but:
            block = _where(condition, ask, block)
        for condition in rule.local:
            block = _where(condition, block, ask)
    for check in reversed(rule.checks):
        asks = rule.asks and not check.otherwise.often
        refuse = [_plain(RETURN, ASK if asks else ERRNO | number_of(check.otherwise))]
        load = [_plain(LOAD, _ARGUMENTS_OFFSET + 8 * check.argument)]
        if isinstance(check, Only):
            block = [*load, _plain(AND, check.mask), *_one_of(check.values, block, refuse)]
        else:
            block = [*load, *_one_of(check.values, refuse, block)]
    return block


def _where(condition: Condition, holds: Block, fails: Block) -> Block:
    if isinstance(condition, Within):
        load = _plain(LOAD, _ARGUMENTS_OFFSET + 8 * condition.argument)
        from_first = _branch(IF_GREATER_OR_EQUAL, condition.end, fails, holds)
        return [load, *_branch(IF_GREATER_OR_EQUAL, condition.first, from_first, fails)]
    if isinstance(condition, Both):
        return _where(condition.one, _where(condition.other, holds, fails), fails)
    if isinstance(condition, Has):
        load = _plain(LOAD, _ARGUMENTS_OFFSET + 8 * condition.argument)
        return [load, *_branch(IF_ANY_BIT, condition.bits, holds, fails)]
    words = range(0, condition.bits, 32)
    for word in reversed(words):
        load = _plain(LOAD, _ARGUMENTS_OFFSET + 8 * condition.argument + word // 8)
        holds = [load, *_branch(IF_EQUAL, condition.value >> word & 0xFFFFFFFF, holds, fails)]
    return holds


def number_of(refused: Refused) -> int:
    """The errno of a refusal."""
    return int(getattr(errno, refused.errno))


def _search(bounds: Sequence[tuple[int, Rule]]) -> Block:
    """Find the rule of a number by halving; `bounds`: the first number of each run that has one rule, ascending."""
    if len(bounds) == 1:
        return _rule(bounds[0][1])
    middle = len(bounds) // 2
    return _branch(IF_GREATER_OR_EQUAL, bounds[middle][0], _search(bounds[middle:]), _search(bounds[:middle]))


def compile_filter(where: Architecture, rules: Mapping[int, Rule], default: Rule) -> Block:
    """The program for `rules` (by number); calls of other architectures end the process."""
    bounds: list[tuple[int, Rule]] = []
    for number in range(max(rules) + 2):
        rule = rules.get(number, default)
        if not bounds or bounds[-1][1] != rule:
            bounds.append((number, rule))
    calls = _search(bounds)
    if where == "x86_64":
        calls = _branch(IF_ANY_BIT, X32_BIT, _rule(default), calls)
    # The jump over all calls may be far; so the short block comes first.
    program = [
        _plain(LOAD, _ARCHITECTURE_OFFSET),
        Instruction(IF_EQUAL, 1, 0, AUDIT_ARCH[where]),
        _plain(RETURN, KILL),
        _plain(LOAD, _NUMBER_OFFSET),
        *calls,
    ]
    assert len(program) <= _MAX_INSTRUCTIONS, len(program)
    return program


UNKNOWN = Rule(errno=errno.ENOSYS, asks=True)  # a call without a row


def guest_rules(where: Architecture, *, programs: bool = True) -> dict[int, Rule]:
    """The table's rows, by number. `programs`: whether any may be started."""
    rules = {}
    for row in ROWS:
        number = row.number(where)
        if number is None:
            continue
        refused = NO_PROGRAMS if row.name in PROGRAM_CALLS and not programs else row.refused
        if refused is not None:
            rules[number] = Rule(errno=number_of(refused), asks=not refused.often)
        else:
            local, but = (row.emulated.local, row.emulated.but) if row.emulated else ((), ())
            asks = bool(row.checks)  # as rules are compared, those that differ in nothing else are one
            rules[number] = Rule(checks=row.checks, asks=asks, emulated=row.emulated is not None, local=local, but=but)
    return rules


# What a supervisor does once its guest runs. Its root directory holds libraries only, so opening files is allowed for what Python
# imports late, and for the guest's /proc, of which it has a descriptor.
_SUPERVISOR_CALLS = """
    read write readv writev pread64 pwrite64 ftruncate fsync lseek close fstat newfstatat stat lstat statx access faccessat faccessat2 readlink readlinkat
    open openat getdents64 getcwd fcntl flock dup dup3
    sendto recvfrom sendmsg recvmsg socketpair shutdown getsockopt setsockopt getsockname getpeername
    epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6 pipe2 eventfd2
    mmap munmap mprotect mremap madvise brk futex rseq set_robust_list membarrier sched_yield sched_getaffinity
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getrandom setitimer
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sigaltstack restart_syscall
    process_vm_readv process_vm_writev pidfd_open pidfd_getfd
    kill tgkill pidfd_send_signal wait4 waitid getpid gettid getppid getuid geteuid getgid getegid getrusage uname sysinfo
    exit exit_group
"""
SUPERVISOR_CALLS = frozenset(_SUPERVISOR_CALLS.split())
_NOT_FOR_SUPERVISORS = Refused("EPERM", "a supervisor does not need it")
_AF_UNIX = 1
_FIOCLEX, _FIONBIO, _FIONREAD, _SIOCOUTQ = 0x5451, 0x5421, 0x541B, 0x5411  # asm-generic/ioctls.h, linux/sockios.h
# SECCOMP_IOCTL_NOTIF_: RECV, SEND, ID_VALID, ADDFD, SET_FLAGS (linux/seccomp.h)
_NOTIFICATIONS = (0xC0502100, 0xC0182101, 0x40082102, 0x40182103, 0x40082104)
_SUPERVISOR_IOCTLS = (_FIOCLEX, _FIONBIO, _FIONREAD, _SIOCOUTQ, *_NOTIFICATIONS)
_SUPERVISOR_CHECKS: Mapping[str, tuple[Check, ...]] = {
    "socketpair": (Only(0, 0xFFFFFFFF, (_AF_UNIX,), _NOT_FOR_SUPERVISORS),),
    "ioctl": (Only(1, 0xFFFFFFFF, _SUPERVISOR_IOCTLS, _NOT_FOR_SUPERVISORS),),
}


def supervisor_rules(where: Architecture) -> dict[int, Rule]:
    """The supervisor's calls, by number; all others are refused with EPERM."""
    return _listed(where, SUPERVISOR_CALLS, _SUPERVISOR_CHECKS)


# What an unpacker does: files below its root directory, and memory.
_UNPACKER_CALLS = """
    read write pread64 lseek close fstat newfstatat stat lstat statx open openat getdents64 getcwd fcntl flock dup dup3
    mkdir mkdirat rename renameat renameat2 unlink unlinkat fchmod umask sched_setscheduler
    mmap munmap mprotect mremap madvise brk futex rseq clock_gettime gettimeofday time getrandom
    rt_sigaction rt_sigprocmask rt_sigreturn restart_syscall getpid gettid exit exit_group
"""
UNPACKER_CALLS = frozenset(_UNPACKER_CALLS.split())
_UNPACKER_CHECKS = {"ioctl": _SUPERVISOR_CHECKS["ioctl"]}


def unpacker_rules(where: Architecture) -> dict[int, Rule]:
    """An unpacker's calls, by number; all others are refused with EPERM."""
    return _listed(where, UNPACKER_CALLS, _UNPACKER_CHECKS)


def _listed(where: Architecture, calls: frozenset[str], checks: Mapping[str, tuple[Check, ...]]) -> dict[int, Rule]:
    rules = {}
    for row in ROWS:
        number = row.number(where)
        if number is not None and (row.name in calls or row.name in checks):
            rules[number] = Rule(checks=checks.get(row.name, ()))
    return rules


def pack(program: Block) -> bytes:
    """The program as the kernel takes it."""
    return b"".join(instruction.pack() for instruction in program)


def _here() -> Architecture:
    where = architecture()
    if where is None:
        raise PlatformError("the process runtime has no filter for this machine: x86-64 and arm64 are supported")
    return where


@functools.cache
def guest_filter(*, programs: bool) -> bytes:
    """The guest's filter for this machine. PlatformError where there is none."""
    where = _here()
    return pack(compile_filter(where, guest_rules(where, programs=programs), UNKNOWN))


@functools.cache
def supervisor_filter() -> bytes:
    """The supervisor's filter for this machine. PlatformError where there is none."""
    where = _here()
    return pack(compile_filter(where, supervisor_rules(where), Rule(errno=errno.EPERM)))


@functools.cache
def unpacker_filter() -> bytes:
    """An unpacker's filter for this machine. PlatformError where there is none."""
    where = _here()
    return pack(compile_filter(where, unpacker_rules(where), Rule(errno=errno.EPERM)))
