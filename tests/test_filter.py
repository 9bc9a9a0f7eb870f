"""The seccomp filters, run by a small interpreter of classic BPF, do what the table says: for every number and any argument."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.runtime.process import filter as filters
from adyton.runtime.process.filter import (
    ALLOW,
    AND,
    ASK,
    AUDIT_ARCH,
    ERRNO,
    IF_ANY_BIT,
    IF_EQUAL,
    IF_GREATER_OR_EQUAL,
    JUMP,
    KILL,
    LOAD,
    RETURN,
    SUPERVISOR_CALLS,
    UNKNOWN,
    UNPACKER_CALLS,
    X32_BIT,
    Rule,
    compile_filter,
    guest_rules,
    supervisor_rules,
    unpacker_rules,
)
from adyton.runtime.process.supervisor.system_calls import refusal
from adyton.runtime.process.table import PROGRAM_CALLS, ROWS, row
from adyton.runtime.process.table_rows import Both, Has, Only, Within

ARCHITECTURES = ("x86_64", "aarch64")
PROGRAMS = {where: filters.pack(compile_filter(where, guest_rules(where), UNKNOWN)) for where in ARCHITECTURES}
SUPERVISOR_PROGRAMS = {
    where: filters.pack(compile_filter(where, supervisor_rules(where), Rule(errno=errno.EPERM)))
    for where in ARCHITECTURES
}
words = st.integers(0, (1 << 64) - 1)
arguments = st.tuples(words, words, words, words, words, words)
NOTHING = (0, 0, 0, 0, 0, 0)


def interpret(program, number, given_arguments=NOTHING, audit_arch=AUDIT_ARCH["x86_64"]):
    """What the kernel would do; fails on what its checker would refuse (kernel/seccomp.c, net/core/filter.c)."""
    data = struct.pack("<iIQ6Q", number if number < 1 << 31 else number - (1 << 32), audit_arch, 0, *given_arguments)
    instructions = list(struct.iter_unpack("=HBBI", program))
    assert 0 < len(instructions) <= 4096
    accumulator = position = 0
    for _ in range(len(instructions)):
        code, true, false, value = instructions[position]
        position += 1
        if code == LOAD:
            assert value % 4 == 0
            assert value <= len(data) - 4
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == AND:
            accumulator &= value
        elif code == RETURN:
            return value
        elif code == JUMP:
            position += value
        else:
            holds = {
                IF_EQUAL: accumulator == value,
                IF_GREATER_OR_EQUAL: accumulator >= value,
                IF_ANY_BIT: bool(accumulator & value),
            }[code]
            position += true if holds else false
    raise AssertionError("the program does not return")


def expected(each, given_arguments):
    """The same from the row, said once more. What is refused is counted by who is asked, and so is what is emulated."""
    if each is None:
        return ASK
    if each.refused:
        return ERRNO | getattr(errno, each.refused.errno) if each.refused.often else ASK
    for check in each.checks:
        low = given_arguments[check.argument] & 0xFFFFFFFF
        fits = low & check.mask in check.values if isinstance(check, Only) else low not in check.values
        if not fits:
            return ERRNO | getattr(errno, check.otherwise.errno) if check.otherwise.often else ASK
    if each.emulated:
        local, but = (
            [holds(condition, given_arguments) for condition in conditions]
            for conditions in (each.emulated.local, each.emulated.but)
        )
        return ALLOW if (local or but) and all(local) and not any(but) else ASK
    return ALLOW


def holds(condition, given_arguments):
    if isinstance(condition, Both):
        return holds(condition.one, given_arguments) and holds(condition.other, given_arguments)
    argument = given_arguments[condition.argument]
    if isinstance(condition, Within):
        return argument & 0xFFFFFFFF in range(condition.first, condition.end)
    if isinstance(condition, Has):
        return bool(argument & 0xFFFFFFFF & condition.bits)
    return argument & ((1 << condition.bits) - 1) == condition.value


@pytest.mark.parametrize("where", ARCHITECTURES)
def test_a_receive_without_an_address_is_local_but_of_one_byte(where):
    number = next(each.number(where) for each in ROWS if each.name == "recvfrom")
    for size, address, outcome in ((2, 0, ALLOW), (1, 0, ASK), (1 | 1 << 32, 0, ALLOW), (2, 7, ASK), (1, 7, ASK)):
        given_arguments = (5, 0x1000, size, 0, address, address)
        assert interpret(PROGRAMS[where], number, given_arguments, AUDIT_ARCH[where]) == outcome, (size, address)
        given_arguments = (900, *given_arguments[1:])  # a datagram socket's
        assert interpret(PROGRAMS[where], number, given_arguments, AUDIT_ARCH[where]) == ASK


@pytest.mark.parametrize("where", ARCHITECTURES)
def test_a_send_without_an_address_is_local_but_of_urgent_data(where):
    number = next(each.number(where) for each in ROWS if each.name == "sendto")
    for flags, address, outcome in ((0, 0, ALLOW), (0x4040, 0, ALLOW), (1, 0, ASK), (0x4041, 0, ASK), (0, 7, ASK)):
        given_arguments = (5, 0x1000, 10, flags, address, address)
        assert interpret(PROGRAMS[where], number, given_arguments, AUDIT_ARCH[where]) == outcome, (flags, address)


@pytest.mark.parametrize("where", ARCHITECTURES)
def test_a_send_that_is_too_large_for_a_datagram_is_not_local_where_it_would_be_one(where):
    number = next(each.number(where) for each in ROWS if each.name == "sendto")
    for descriptor, size, outcome in ((900, 65507, ALLOW), (900, 65508, ASK), (900, 1 << 30, ASK), (5, 65508, ALLOW)):
        given_arguments = (descriptor, 0x1000, size, 0, 0, 0)
        assert interpret(PROGRAMS[where], number, given_arguments, AUDIT_ARCH[where]) == outcome, (descriptor, size)


@pytest.mark.parametrize("where", ARCHITECTURES)
@pytest.mark.parametrize("call", ["sendmsg", "recvmsg", "sendmmsg", "recvmmsg"])
def test_messages_are_local_but_of_the_descriptors_of_datagram_sockets(where, call):
    number = next(each.number(where) for each in ROWS if each.name == call)
    for descriptor, outcome in (
        (3, ALLOW),
        (895, ALLOW),
        (896, ASK),
        (1023, ASK),
        (1024, ALLOW),
        (-1 & (1 << 64) - 1, ALLOW),
    ):
        given_arguments = (descriptor, 0x1000, 0, 0, 0, 0)
        assert interpret(PROGRAMS[where], number, given_arguments, AUDIT_ARCH[where]) == outcome, descriptor


def by_number(where):
    return {each.number(where): each for each in ROWS if each.number(where) is not None}


@pytest.mark.parametrize("where", ARCHITECTURES)
def test_every_number_has_the_outcome_of_its_row(where):
    rows = by_number(where)
    for number in range(700):
        outcome = interpret(PROGRAMS[where], number, audit_arch=AUDIT_ARCH[where])
        assert outcome == expected(rows.get(number), NOTHING), number


@given(where=st.sampled_from(ARCHITECTURES), number=st.integers(0, (1 << 30) - 1), given_arguments=arguments)
def test_any_call_has_the_outcome_of_its_row(where, number, given_arguments):
    outcome = interpret(PROGRAMS[where], number, given_arguments, AUDIT_ARCH[where])
    assert outcome == expected(by_number(where).get(number), given_arguments)


CHECKED = [each for each in ROWS if each.checks]


@given(where=st.sampled_from(ARCHITECTURES), each=st.sampled_from(CHECKED), given_arguments=arguments, data=st.data())
def test_arguments_are_checked_as_the_row_says(where, each, given_arguments, data):
    number = each.number(where)
    if number is None:
        return
    chosen = list(given_arguments)
    for check in each.checks:
        if data.draw(st.booleans()):
            high = data.draw(st.integers(0, (1 << 32) - 1)) << 32  # which the kernel leaves out for these arguments
            chosen[check.argument] = data.draw(st.sampled_from(check.values)) | high
    outcome = interpret(PROGRAMS[where], number, tuple(chosen), AUDIT_ARCH[where])
    assert outcome == expected(each, tuple(chosen))


@given(number=st.integers(0, (1 << 32) - 1))
def test_an_x32_call_does_not_exist(number):
    assert interpret(PROGRAMS["x86_64"], number | X32_BIT) == ASK
    assert refusal(None, NOTHING).errno == "ENOSYS"


@pytest.mark.parametrize("program", [PROGRAMS, SUPERVISOR_PROGRAMS])
@given(number=st.integers(0, 1000), audit_arch=st.integers(0, (1 << 32) - 1))
def test_a_call_of_another_architecture_ends_the_process(program, number, audit_arch):
    for where in ARCHITECTURES:
        if audit_arch != AUDIT_ARCH[where]:
            assert interpret(program[where], number, audit_arch=audit_arch) == KILL
        other = next(each for each in ARCHITECTURES if each != where)
        assert interpret(program[where], number, audit_arch=AUDIT_ARCH[other]) == KILL
    assert interpret(program["x86_64"], number, audit_arch=0x40000003) == KILL  # the 32-bit calls of the same machine


@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_no_thread_or_process_starts_in_a_new_namespace(flag):
    number = row("clone").x86_64
    assert interpret(PROGRAMS["x86_64"], number, (0x3D0F00 | flag, 0, 0, 0, 0, 0)) == ASK
    assert refusal(row("clone"), (0x3D0F00 | flag, 0, 0, 0, 0, 0)).errno == "EPERM"
    assert interpret(PROGRAMS["x86_64"], number, (0x3D0F00, 0, 0, 0, 0, 0)) == ALLOW  # a thread as libc starts it
    assert interpret(PROGRAMS["x86_64"], number, (0x01200011, 0, 0, 0, 0, 0)) == ALLOW  # a fork


def test_only_unix_socket_pairs():
    number = row("socketpair").x86_64
    assert interpret(PROGRAMS["x86_64"], number, (1, 1, 0, 0, 0, 0)) == ALLOW
    assert interpret(PROGRAMS["x86_64"], number, (2, 1, 0, 0, 0, 0)) == ASK
    assert refusal(row("socketpair"), (2, 1, 0, 0, 0, 0)).errno == "EACCES"


@pytest.mark.parametrize(
    "option", [1, 4, 22, 24, 35, 47, 0x59616D61]
)  # PDEATHSIG, DUMPABLE, SECCOMP, CAPBSET, MM, AMBIENT, PTRACER
def test_a_guest_cannot_change_what_holds_it(option):
    assert interpret(PROGRAMS["x86_64"], row("prctl").x86_64, (option, 0, 0, 0, 0, 0)) == ASK
    assert refusal(row("prctl"), (option, 0, 0, 0, 0, 0)).errno == "EINVAL"


@given(where=st.sampled_from(ARCHITECTURES), each=st.sampled_from(ROWS), given_arguments=arguments)
def test_who_is_asked_refuses_what_the_filter_would_not_let_pass(where, each, given_arguments):
    if each.name in PROGRAM_CALLS:
        return  # asked about by another filter only: that of an image without programs
    refused = refusal(each, given_arguments)
    outcome = expected(each, given_arguments)
    if each.emulated is None and not (each.refused and each.refused.often):
        assert (refused is None) == (outcome == ALLOW)
    if refused is not None:
        assert outcome in (ASK, ERRNO | getattr(errno, refused.errno))


@pytest.mark.parametrize("where", ARCHITECTURES)
@pytest.mark.parametrize("name", PROGRAM_CALLS)
def test_where_no_program_may_be_started_it_is_asked_and_refused(where, name):
    program = filters.pack(compile_filter(where, guest_rules(where, programs=False), UNKNOWN))
    assert interpret(program, row(name).number(where), (0,) * 6, AUDIT_ARCH[where]) == ASK
    assert refusal(row(name), (0,) * 6).errno == "EACCES"


@pytest.mark.parametrize("where", ARCHITECTURES)
def test_only_a_null_pointer_is_no_address(where):
    number = row("sendto").number(where)
    for pointer, outcome in ((0, ALLOW), (1, ASK), (1 << 32, ASK), ((1 << 64) - 1, ASK)):
        assert interpret(PROGRAMS[where], number, (3, 0, 0, 0, pointer, 0), AUDIT_ARCH[where]) == outcome


def test_unix_sockets_are_made_by_the_guests_kernel_and_no_others():
    number = row("socket").x86_64
    for family, outcome in ((1, ALLOW), (1 | 7 << 32, ALLOW), (2, ASK), (10, ASK), (16, ASK), (17, ASK), (40, ASK)):
        assert interpret(PROGRAMS["x86_64"], number, (family, 1, 0, 0, 0, 0)) == outcome


@pytest.mark.parametrize("where", ARCHITECTURES)
def test_a_supervisor_does_what_is_listed_and_nothing_else(where):
    for number, each in by_number(where).items():
        outcome = interpret(SUPERVISOR_PROGRAMS[where], number, (1, 0x5421, 0, 0, 0, 0), AUDIT_ARCH[where])
        listed = each.name in SUPERVISOR_CALLS or each.name in ("ioctl", "socketpair")
        assert outcome == (ALLOW if listed else ERRNO | errno.EPERM), each.name


NOT_FOR_SUPERVISORS = (
    "socket connect bind execve clone clone3 fork unshare mount ptrace io_uring_setup prlimit64 chroot setns"
)


@pytest.mark.parametrize("name", NOT_FOR_SUPERVISORS.split())
def test_a_supervisor_cannot(name):
    assert interpret(SUPERVISOR_PROGRAMS["x86_64"], row(name).x86_64) == ERRNO | errno.EPERM


def test_supervisor_calls_are_names_of_the_table():
    assert {each.name for each in ROWS} >= SUPERVISOR_CALLS | UNPACKER_CALLS


@pytest.mark.parametrize("where", ARCHITECTURES)
def test_an_unpacker_does_what_is_listed_and_nothing_else(where):
    program = filters.pack(compile_filter(where, unpacker_rules(where), Rule(errno=errno.EPERM)))
    for number, each in by_number(where).items():
        outcome = interpret(program, number, (1, 0x5421, 0, 0, 0, 0), AUDIT_ARCH[where])
        listed = each.name in UNPACKER_CALLS or each.name == "ioctl"
        assert outcome == (ALLOW if listed else ERRNO | errno.EPERM), each.name


values = st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=400, unique=True)


@given(numbers=st.sets(st.integers(0, 3000), min_size=1, max_size=600), seed=st.randoms(use_true_random=False))
def test_any_set_of_rules_compiles_to_itself(numbers, seed):
    rules = {number: Rule(errno=seed.choice([0, errno.EPERM, errno.EACCES])) for number in numbers}
    program = filters.pack(compile_filter("x86_64", rules, Rule(errno=errno.ENOSYS)))
    for number in [*numbers, *(each + 1 for each in numbers), *(each - 1 for each in numbers if each)]:
        rule = rules.get(number, Rule(errno=errno.ENOSYS))
        assert interpret(program, number) == (ERRNO | rule.errno if rule.errno else ALLOW)


@given(listed=values, asked=st.integers(0, (1 << 32) - 1), data=st.data())
def test_long_lists_of_values_are_jumped_over(listed, asked, data):
    from adyton.runtime.process.table_rows import Refused

    refused = Refused("EACCES", "")
    rules = {7: Rule(checks=(Only(2, 0xFFFFFFFF, tuple(listed), refused),))}
    program = filters.pack(compile_filter("x86_64", rules, Rule(errno=errno.EPERM)))
    value = data.draw(st.sampled_from([asked, *listed[:3]]))
    assert interpret(program, 7, (0, 0, value, 0, 0, 0)) == (ALLOW if value in listed else ERRNO | errno.EACCES)
