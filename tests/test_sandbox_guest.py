"""What a guest has, and what it cannot do: its file tree, processes, user, system calls and limits."""

import errno
import os
import platform

import pytest
from sandbox import CodeError, enclave, start_zygote

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    with start_zygote(store) as started:
        yield started


@pytest.fixture(scope="module")
def finished(zygote):
    """An enclave whose walls are all up."""
    with enclave(zygote) as probe:
        assert probe.guest("return finish(True, '/client', 'host')") == []
        yield probe


SYSTEM_CALL = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
ctypes.set_errno(0)
result = libc.syscall({number}, {arguments})
return errno.errorcode.get(ctypes.get_errno(), "") if result < 0 else ""
"""


def system_call(probe, name, *arguments):
    from adyton.runtime.process.table import number

    number = name if isinstance(name, int) else number(name)
    return probe.guest(
        SYSTEM_CALL.format(number=number, arguments=", ".join(f"ctypes.c_long({each})" for each in arguments))
    )


# -- files ----------------------------------------------------------------------------------------------------------------


def test_nothing_of_the_server_is_in_the_tree(finished):
    paths = [
        "/root",
        "/home",
        "/var",
        "/sys",
        "/run",
        "/mnt",
        "/system",
        "/opt/adyton/store",
        "/opt/adyton/fuse",
        __file__,
    ]
    paths += ["/dev/fuse", "/dev/tty", "/dev/kmsg", "/dev/pts", "/etc/shadow", "/etc/machine-id"]
    paths += ["/usr/local", "/usr/share/doc", "/usr/include", "/usr/bin/python3", "/usr/bin/env", "/usr/lib/python3"]
    assert finished.guest(f"import os; return [path for path in {paths!r} if os.path.exists(path)]") == []


def test_the_runtime_is_there_and_no_other_packages(finished):
    code = "import sys; return [sys.prefix, sys.executable, [path for path in sys.path if not path.startswith('/opt/adyton/')]]"
    prefix, executable, others = finished.guest(code)
    assert prefix == "/opt/adyton/python"
    assert executable.startswith("/opt/adyton/python/bin/python3")
    assert others == []
    assert (
        finished.guest("import glob; return [p for p in glob.glob('/opt/adyton/python/lib/python3*/*-packages/*')]")
        == []
    )
    with pytest.raises(CodeError, match="ModuleNotFoundError"):
        finished.guest("import grpc")
    for other in ("pytest", "OpenSSL"):
        with pytest.raises(CodeError, match="ModuleNotFoundError"):
            finished.guest(f"import {other}")
    assert finished.guest("import sys; return 'grpc' in sys.modules or 'OpenSSL' in sys.modules") is False


NATIVE = "ssl sqlite3 ctypes lzma bz2 zoneinfo decimal msgspec cryptography.x509 google.protobuf.message cffi"


@pytest.mark.parametrize("module", NATIVE.split())
def test_native_modules_can_be_imported(finished, module):
    finished.guest(f"import {module}")


def test_time_zones_and_names_are_known(finished):
    assert finished.guest("import zoneinfo; return str(zoneinfo.ZoneInfo('Europe/Paris'))") == "Europe/Paris"
    assert finished.guest("import getpass, os, pwd; return pwd.getpwuid(os.getuid()).pw_name") == "enclave"
    assert finished.guest("import grp, pwd; return [pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name]") == [
        "root",
        "root",
    ]
    assert finished.guest("import socket; return socket.gethostname()") == "host"  # as finish was told


def test_the_image_is_unpacked(finished):
    assert finished.guest("import runpy; return runpy.run_path('/enclave/hello.py')['GREETING']") == "hello"


@pytest.mark.parametrize(
    "directory", ["/enclave", "/usr", "/usr/lib", "/etc", "/dev", "/opt/adyton", "/opt/adyton/lib/adyton"]
)
def test_what_is_the_enclaves_own_cannot_be_written(finished, directory):
    with pytest.raises(CodeError, match=r"Errno (30|13)"):
        finished.guest(f"open({directory!r} + '/new', 'w')")
    with pytest.raises(CodeError, match=r"Errno (30|13|1|16)"):
        finished.guest(f"import os; os.rename({directory!r}, {directory!r} + 'x')")


@pytest.mark.parametrize("path", ["/enclave/hello.py", "/etc/passwd", "/opt/adyton/lib/adyton/errors.py"])
def test_files_of_its_own_cannot_be_changed(finished, path):
    for code in (
        f"open({path!r}, 'a')",
        f"os.unlink({path!r})",
        f"os.chmod({path!r}, 0o777)",
        f"os.truncate({path!r}, 0)",
    ):
        with pytest.raises(CodeError, match=r"Errno (30|13|1)\b"):
            finished.guest(f"import os; {code}")


@pytest.mark.parametrize("directory", ["/dev/shm", "/tmp"])
def test_room_for_temporary_files_is_bounded(zygote, directory):
    with enclave(zygote) as probe:
        probe.guest("finish(True, '/enclave', 'host')")
        code = f"""
            import os
            descriptor = os.open({directory + "/big"!r}, os.O_CREAT | os.O_RDWR)
            os.posix_fallocate(descriptor, 0, 255 << 20)
            try:
                os.posix_fallocate(descriptor, 0, 257 << 20)
            except OSError as error:
                return error.errno
        """
        assert probe.guest(code) == errno.ENOSPC


def test_tmp_is_the_file_trees_where_it_is_not_mounted(zygote):
    with enclave(zygote) as probe:
        assert probe.guest("return finish(False, '/client', 'host')") == []
        with pytest.raises(CodeError, match="Errno 38"):  # the stand-in's tree takes no files
            probe.guest("open('/tmp/x', 'w')")


def test_devices_are_the_harmless_ones(finished):
    names = finished.guest("import os; return sorted(os.listdir('/dev'))")
    assert names == ["fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"]
    assert finished.guest(
        "return len(open('/dev/urandom', 'rb', 0).read(8)), open('/dev/zero', 'rb', 0).read(2).hex()"
    ) == [8, "0000"]
    assert finished.guest("return open('/dev/null', 'wb').write(b'x')") == 1


@pytest.mark.parametrize("path", ["/usr", "/proc", "/opt/adyton", "/client/../enclave", "/nowhere", "/"])
def test_an_unusable_working_directory_is_replaced_with_a_warning(zygote, path):
    with enclave(zygote) as probe:
        warnings = probe.guest(f"return finish(True, {path!r}, 'host')")
        there = probe.guest("import os; return os.getcwd()")
        if path == "/":
            assert (warnings, there) == ([], "/")
        else:
            assert there == "/enclave"
            assert len(warnings) == 1
            assert path in warnings[0]


# -- processes, user and descriptors --------------------------------------------------------------------------------------


def test_it_sees_its_own_processes_only(finished):
    assert finished.guest("import os; return [name for name in os.listdir('/proc') if name.isdigit()]") == ["1", "2"]
    assert finished.guest("import os; return os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0)") == [2, 0, 2, 2]


def test_it_is_an_ordinary_user_without_capabilities(finished):
    users, groups, more = finished.guest("import os; return os.getresuid(), os.getresgid(), os.getgroups()")
    assert users == groups == [1000] * 3
    # Only root can give up groups: an ordinary user's stay, and those that are not the guest's have no name there.
    assert set(more) <= (set() if os.geteuid() == 0 else {1000, 65534})
    lines = finished.guest("return dict(line.rstrip('\\n').split(':\\t', 1) for line in open('/proc/self/status'))")
    assert {lines[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert lines["NoNewPrivs"] == "1"
    assert lines["Seccomp"] == "2"
    for code in ("os.setuid(0)", "os.setgroups([0])", "os.setresuid(0, 0, 0)"):
        with pytest.raises(CodeError, match=r"Errno (1|22)\b"):
            finished.guest(f"import os; {code}")


def test_it_holds_no_descriptor_but_its_own(zygote):
    code = """
        import os
        finish(True, "/client", "host")
        with os.scandir("/proc/self/fd") as entries:
            return {each.name: os.readlink(each.path) for each in entries}, control.fileno()
    """
    with enclave(zygote) as probe:
        held, control = probe.guest(code)
    assert held.pop(str(control)).startswith("socket:")
    assert held.pop("0") == "/dev/stdin"  # of the FUSE tree
    assert held.pop("1").startswith("pipe:")
    assert held.pop("2").startswith("pipe:")
    assert list(held.values()) == ["/proc/2/fd"]  # open for this listing


def test_its_standard_streams_reach_the_supervisor(zygote):
    with enclave(zygote) as probe:
        probe.guest(
            "finish(True, '/client', 'host')\nimport sys, os\nprint('out', flush=True)\nprint('err', file=sys.stderr, flush=True)"
        )
        probe.guest("import os; os.write(1, b'raw')")
        output = probe.supervisor("return output.decode()")
        assert sorted(output.replace("raw", "").split()) == ["err", "out"]
        assert probe.guest("import sys; return sys.stdin.read()") == ""


def test_no_interface_but_an_idle_loopback(finished):
    assert finished.guest(
        "return [line.split(':')[0].strip() for line in open('/proc/net/dev').read().splitlines()[2:]]"
    ) == ["lo"]


# -- system calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("socket", (2, 1, 0), "ENOSYS"),  # the stand-in for a supervisor emulates nothing
        ("socketpair", (2, 1, 0, 0), "EACCES"),
        ("execve", (0, 0, 0), "EACCES"),
        ("ptrace", (0, 0, 0, 0), "EPERM"),
        ("mount", (0, 0, 0, 0, 0), "EPERM"),
        ("unshare", (0x10000000,), "EPERM"),
        ("setns", (0, 0), "EPERM"),
        ("chroot", (0,), "EPERM"),
        ("pivot_root", (0, 0), "EPERM"),
        ("clone", (0x10000000 | 17, 0, 0, 0, 0), "EPERM"),
        ("clone", (0x10000 | 0x800 | 0x100, 0, 0, 0, 0), "EINVAL"),  # a thread with descriptors of its own
        ("clone3", (0, 0), "ENOSYS"),
        ("vmsplice", (0, 0, 0, 0), "ENOSYS"),
        ("io_uring_setup", (1, 0), "ENOSYS"),
        ("bpf", (0, 0, 0), "EPERM"),
        ("userfaultfd", (0,), "EPERM"),
        ("keyctl", (0, 0, 0, 0, 0), "ENOSYS"),
        ("perf_event_open", (0, 0, 0, 0, 0), "EPERM"),
        ("process_vm_readv", (1, 0, 0, 0, 0, 0), "EPERM"),
        ("open_by_handle_at", (0, 0, 0), "EPERM"),
        ("seccomp", (1, 0, 0), "EINVAL"),
        ("ioctl", (0, 0x5412, 0), "EPERM"),
        ("prctl", (1, 0, 0, 0, 0), "EINVAL"),
        ("prctl", (4, 0, 0, 0, 0), "EINVAL"),
        ("personality", (0x40000,), "EPERM"),
        (999, (), "ENOSYS"),
    ],
)
def test_a_refused_call_fails_with_its_errno(finished, name, arguments, expected):
    assert system_call(finished, name, *arguments) == expected


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 belongs to x86-64")
def test_x32_calls_do_not_exist(finished):
    assert system_call(finished, 39 | 0x40000000) == "ENOSYS"


LOCAL = {
    "threads": "import threading; r = []; t = threading.Thread(target=r.append, args=(1,)); t.start(); t.join(); return r",
    "fork": "import os; pid = os.fork(); os._exit(7) if pid == 0 else None; return os.waitpid(pid, 0)[1] >> 8",
    "pipe": "import os; r, w = os.pipe(); os.write(w, b'x'); return os.read(r, 1).decode()",
    "pair": "import socket; a, b = socket.socketpair(); a.sendall(b'x'); return b.recv(9).decode()",
    "pass": "import socket, os; a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [0]); return len(socket.recv_fds(b, 1, 1)[1])",
    "poll": "import select, os; r, w = os.pipe(); p = select.epoll(); p.register(r); os.write(w, b'x'); return len(p.poll(1))",
    "mmap": "import mmap; m = mmap.mmap(-1, 4096); m[:1] = b'x'; return m[:1].decode()",
    "random": "import os, secrets, random; return len(os.urandom(4)) + len(secrets.token_bytes(4)) + (random.random() < 1)",
    "asyncio": "import asyncio; return asyncio.run(asyncio.sleep(0, 5))",
    "pool": "from concurrent.futures import ThreadPoolExecutor as P\nwith P(2) as p: return list(p.map(abs, [-1, 2]))",
    "processes": "import multiprocessing as m; c = m.get_context('fork'); a, b = c.Pipe(); p = c.Process(target=b.send, args=(3,)); p.start(); r = a.recv(); p.join(); return r",
    "signals": "import signal, os; r = []; signal.signal(10, lambda *_: r.append(1)); os.kill(os.getpid(), 10); return r",
    "timer": "import time; time.sleep(0.001); return 1",
    "scheduling": "import os; return len(os.sched_getaffinity(0)) > 0",
}


@pytest.mark.parametrize("what", LOCAL)
def test_what_programs_do_within_themselves_works(finished, what):
    assert finished.guest(LOCAL[what])


def test_starting_a_program_fails_clearly(finished):
    with pytest.raises(CodeError, match=r"PermissionError: .*Errno 13"):
        finished.guest("import subprocess; subprocess.run(['/usr/bin/true'])")


def test_it_cannot_look_at_other_processes_memory(finished):
    with pytest.raises(CodeError, match="FileNotFoundError"):
        finished.guest(f"open('/proc/{os.getpid()}/mem', 'rb')")


# -- limits ---------------------------------------------------------------------------------------------------------------


def test_open_files_are_limited(zygote):
    with enclave(zygote, limits={"files": 32}) as probe:
        probe.guest("finish(True, '/client', 'host')")
        with pytest.raises(CodeError, match="Errno 24"):
            probe.guest("import os; return [os.dup(0) for _ in range(64)]")


def test_threads_are_limited(zygote):
    with enclave(zygote, limits={"threads": 8}) as probe:
        probe.guest("finish(True, '/client', 'host')")
        code = """
            import threading
            stop = threading.Event()
            threads = []
            try:
                for _ in range(32):
                    threads.append(threading.Thread(target=stop.wait))
                    threads[-1].start()
            except RuntimeError:
                return len(threads) - 1
            finally:
                stop.set()
        """
        assert 1 <= probe.guest(code) < 8


def test_memory_is_limited(zygote):
    with enclave(zygote, limits={"memory": 256 << 20}) as probe:
        probe.guest("finish(True, '/client', 'host')")
        assert probe.guest("return len(bytes(64 << 20))") == 64 << 20
        with pytest.raises(CodeError, match="MemoryError"):
            probe.guest("return len(bytes(512 << 20))")
