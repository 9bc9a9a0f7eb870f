"""The table of system calls: complete, free of contradictions, and what the command prints."""

import errno
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from adyton.cli.syscalls import command
from adyton.runtime.process import table_page
from adyton.runtime.process.table import GROUPS, ROWS, number, row
from adyton.runtime.process.table_rows import Never, Only

X86_HEADERS = [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")]
GENERIC_HEADER = Path("/usr/include/asm-generic/unistd.h")
DEFINITION = re.compile(r"^#define\s+__NR(3264)?_(\w+)\s+(\d+)\s*$", re.MULTILINE)
NOT_CALLS = {"syscalls", "arch_specific_syscall"}
OTHER_NAMES = {"fstatat": "newfstatat", "sync_file_range2": "sync_file_range"}  # of arm64's, in the generic header
FOR_32_BITS_ONLY = range(403, 424)  # calls with 64-bit times

# Of Linux 7.0: the last number, and those that no call has. arch/x86/entry/syscalls/syscall_64.tbl (337 to 386 were never given, 387 to
# 423 must not be); scripts/syscall.tbl (244 to 259 are an architecture's own, of which arm64 has none; 295 to 402 are unassigned, 403
# to 423 are for 32 bits).
LAST = 471
GAPS = {"x86_64": [*range(337, 424)], "aarch64": [*range(244, 260), *range(295, 424)]}
PAGE = Path(__file__).parent.parent / "docs" / "syscalls.md"


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_every_number_up_to_the_newest_has_its_row_and_no_other_has(architecture):
    known = {each.number(architecture) for each in ROWS} - {None}
    assert known == set(range(LAST + 1)) - set(GAPS[architecture])


def test_the_page_is_made_from_the_table():
    assert PAGE.read_text() == table_page.markdown(), "run make docs"
    for each in ROWS:
        assert f"| `{each.name}` |" in PAGE.read_text()


def _numbers(header):
    found = {name: int(value) for _, name, value in DEFINITION.findall(header.read_text()) if name not in NOT_CALLS}
    return {OTHER_NAMES.get(name, name): value for name, value in found.items() if value not in FOR_32_BITS_ONLY}


def test_every_call_of_the_x86_64_headers_has_its_row():
    header = next((each for each in X86_HEADERS if each.exists()), None)
    if header is None:
        pytest.skip("no kernel headers for x86-64 here")
    known = {each.name: each.x86_64 for each in ROWS}
    assert {name: known.get(name) for name in _numbers(header)} == _numbers(header)


def test_every_call_of_the_generic_headers_has_its_row():
    if not GENERIC_HEADER.exists():
        pytest.skip("no kernel headers here")
    known = {each.name: each.aarch64 for each in ROWS}
    assert {name: known.get(name) for name in _numbers(GENERIC_HEADER)} == _numbers(GENERIC_HEADER)


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_no_name_or_number_comes_twice(architecture):
    numbers = [each.number(architecture) for each in ROWS if each.number(architecture) is not None]
    assert len(numbers) == len(set(numbers))
    assert len({each.name for each in ROWS}) == len(ROWS)


def test_calls_since_424_have_one_number_everywhere():
    for each in ROWS:
        if min(each.x86_64 or 0, each.aarch64 or 0) >= 424:
            assert each.x86_64 == each.aarch64, each.name


def test_every_refusal_says_why():
    for each in ROWS:
        refusals = [check.otherwise for check in each.checks] + ([each.refused] if each.refused else [])
        for refused in refusals:
            assert getattr(errno, refused.errno)
            assert len(refused.reason) > 10
        assert not (each.refused and each.checks), each.name
        assert each.group in GROUPS


def test_checks_look_at_arguments_that_a_call_has():
    for each in ROWS:
        for check in each.checks:
            assert 0 <= check.argument < 6
            assert check.values
            if isinstance(check, Only):
                assert all(value & check.mask == value for value in check.values)
            else:
                assert isinstance(check, Never)


REFUSED = """
    ptrace process_vm_readv process_vm_writev pidfd_getfd
    io_uring_setup io_uring_enter io_uring_register userfaultfd bpf perf_event_open keyctl add_key request_key mount umount2
    unshare setns chroot pivot_root move_mount open_tree fsopen fsmount kexec_load kexec_file_load init_module finit_module
    delete_module swapon swapoff reboot quotactl name_to_handle_at open_by_handle_at fanotify_init seccomp clone3 iopl
    ioperm modify_ldt settimeofday clock_settime sethostname memfd_secret shmget semget
"""


@pytest.mark.parametrize("name", REFUSED.split())
def test_is_refused(name):
    assert row(name).action == "refused"


EMULATED = """
    socket connect bind listen accept accept4 getsockname getpeername getsockopt setsockopt shutdown sendto recvfrom sendmsg recvmsg sendmmsg
    recvmmsg memfd_create
"""


@pytest.mark.parametrize("name", EMULATED.split())
def test_is_emulated(name):
    assert row(name).action == "emulated"


LOCAL = """
    read write openat mmap futex clone fork rt_sigaction kill tgkill pipe2 eventfd2 epoll_wait poll socketpair
    clock_gettime getrandom exit_group wait4 dup3 fsync renameat2
"""


@pytest.mark.parametrize("name", LOCAL.split())
def test_is_local(name):
    assert row(name).action == "local"


def test_numbers_of_this_machine():
    assert number("openat") in (56, 257)
    with pytest.raises(LookupError):
        number("no_such_call")


def test_the_command_prints_every_row():
    printed = json.loads(CliRunner().invoke(command, ["--json"], catch_exceptions=False).output)
    assert [each["name"] for each in printed] == [each.name for each in ROWS]
    socket = next(each for each in printed if each["name"] == "socket")
    assert (socket["action"], socket["errno"]) == ("emulated", None)
    assert socket["how"]
    assert next(each for each in printed if each["name"] == "ptrace")["reason"]
    assert (socket["group"], socket["x86_64"], socket["aarch64"]) == ("net", 41, 198)
    assert CliRunner().invoke(command, ["--markdown"], catch_exceptions=False).output == table_page.markdown()
    assert CliRunner().invoke(command, ["--markdown", "--json"]).exit_code == 2
    text = CliRunner().invoke(command, [], catch_exceptions=False).output
    assert len(text.splitlines()) == len(ROWS)
    assert "EACCES where argument 0: only AF_UNIX pairs are local" in text
