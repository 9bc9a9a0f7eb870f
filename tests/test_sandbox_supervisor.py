"""What a supervisor can reach: its guest, and nothing else."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from sandbox import PROBE, CodeError, children, enclave, guest_of, own_user, start_zygote, status

import adyton

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def zygote(store):
    with start_zygote(store) as started:
        yield started


@pytest.fixture(scope="module")
def probe(zygote):
    with enclave(zygote) as started:
        yield started


def test_each_enclave_has_a_user_of_its_own(zygote, probe):
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: no enclave has a user id of its own")
    with enclave(zygote) as other:
        guest = guest_of(probe.pid)
        own = own_user(probe.pid)
        for pid in (probe.pid, guest):
            assert status(pid)["Uid"].split() == [str(own)] * 4
            assert status(pid)["Gid"].split() == [str(own)] * 4
            assert status(pid)["Groups"].split() == []
        assert status(other.pid)["Uid"].split() == [str(own_user(other.pid))] * 4
        assert own_user(other.pid) != own


def test_it_has_no_capability_and_is_under_a_filter(probe):
    lines = status(probe.pid)
    assert {lines[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert (lines["NoNewPrivs"], lines["Seccomp"]) == ("1", "2")


def test_others_of_its_user_cannot_look_into_it(probe):
    assert os.stat(f"/proc/{probe.pid}/maps").st_uid != own_user(probe.pid)  # as it is not dumpable, see proc_pid(5)
    guest = guest_of(probe.pid)
    assert os.stat(f"/proc/{guest}/maps").st_uid == own_user(probe.pid)


def test_it_shares_no_network_and_no_mounts_with_the_server(probe):
    for kind in ("net", "mnt", "ipc"):
        assert os.readlink(f"/proc/{probe.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    guest = guest_of(probe.pid)
    for kind in ("net", "mnt", "ipc", "pid", "user", "uts"):
        assert os.readlink(f"/proc/{guest}/ns/{kind}") != os.readlink(f"/proc/{probe.pid}/ns/{kind}")


def test_its_files_are_the_libraries(probe, store):
    paths = [
        "/proc",
        "/opt/adyton/store",
        "/opt/adyton/supervisor",
        "/opt/adyton/fuse",
        "/mnt",
        "/root",
        "/home",
        str(store),
        "/system",
        "/dev/fuse",
    ]
    assert probe.supervisor(f"import os; return [path for path in {paths!r} if os.path.exists(path)]") == []
    assert probe.supervisor("import wave; return wave.__name__") == "wave"  # what is imported late is there


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 1))",
        "import os; os.execv('/opt/adyton/python/bin/python3', ['x'])",
        "import os; os.fork()",
        "import os; os.chroot('/')",
        "import os; os.setuid(0)",
        "import os; os.mkdir('/x')",
        "import os; os.unlink('/etc/passwd')",
        "import threading; threading.Thread(target=print).start()",
    ],
)
def test_it_cannot(probe, code):
    with pytest.raises(CodeError, match=r"Errno 1\b|Errno 30|RuntimeError: can't start"):
        probe.supervisor(code)


def test_it_cannot_write_files(probe):
    with pytest.raises(CodeError, match=r"Errno (1|30|13)\b"):
        probe.supervisor("open('/etc/new', 'w')")


def test_it_can_look_into_its_guest(probe):
    code = """
        import os
        descriptor = os.open("2/syscall", os.O_RDONLY, dir_fd=started.proc)
        first = os.read(descriptor, 100).split()
        memory = os.open("2/mem", os.O_RDONLY, dir_fd=started.proc)
        with open(os.open("2/maps", os.O_RDONLY, dir_fd=started.proc)) as maps:
            start = next(int(line.split("-")[0], 16) for line in maps if "libc" in line)
        return [len(first) > 0, os.pread(memory, 4, start).hex()]
    """
    assert probe.supervisor(code) == [True, b"\x7fELF".hex()]
    assert probe.supervisor("import os; return [n for n in os.listdir(started.proc) if n.isdigit()]") == ["1", "2"]


def test_it_cannot_signal_another_enclave(zygote, probe):
    with enclave(zygote) as other:
        for pid in (other.pid, *children(other.pid), os.getpid()):
            with pytest.raises(CodeError, match=r"Errno 1\b|Errno 3\b"):
                probe.supervisor(f"import os; os.kill({pid}, 0)")
        assert probe.supervisor("import signal; signal.pidfd_send_signal(started.pidfd, 0)") is None


def test_the_guest_never_had_the_supervisors_modules(tmp_path):
    with start_zygote(tmp_path) as zygote, enclave(zygote) as probe:
        names = probe.guest("import sys; return sorted(sys.modules)")
        assert not {
            name
            for name in names
            if name.split(".")[0] in ("grpc", "OpenSSL", "click", "rich", "pytest", "subprocess_")
        }


# -- as an ordinary user: this Python and these packages, shown where any user may read them, with a /dev/fuse for all ----------

AS_ORDINARY_USER = """
import json, os, sys
from adyton.runtime.process import mounts, namespaces, root
prefix, interpreter, paths, directory, program = json.loads(sys.argv[1])
namespaces.unshare(namespaces.NEWNS)
mounts.make_private()
trees = {path: mounts.clone(path) for path in [prefix, *paths]}
devices = {name: mounts.clone(f"/dev/{name}") for name in ("null", "zero", "full", "random", "urandom")}
mounts.attach(mounts.file_system("tmpfs", {"mode": "0755"}, 0), "/root" if os.path.isdir("/root") else "/mnt")
base = "/root" if os.path.isdir("/root") else "/mnt"
moved = {}
for number, (path, mount) in enumerate(trees.items()):
    moved[path] = f"{base}/{number}"
    os.mkdir(moved[path])
    mounts.attach(mount, moved[path])
mounts.attach(mounts.file_system("tmpfs", {"mode": "0755"}, 0), "/dev")
for name, mount in devices.items():
    open(f"/dev/{name}", "w").close()
    mounts.attach(mount, f"/dev/{name}")
if os.environ.get("FUSE_MODE"):
    root.make_device("/dev/fuse", root.FUSE_DEVICE)
    os.chmod("/dev/fuse", int(os.environ["FUSE_MODE"], 8))
os.chown(directory, 65534, 65534)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
os.chdir("/")
environment = {"PYTHONPATH": ":".join(moved[path] for path in paths), "LD_LIBRARY_PATH": moved[prefix] + "/lib", "HOME": "/"}
python = interpreter.replace(prefix, moved[prefix], 1)
os.execve(python, [python, "-B", "-c", program, directory], environment)
"""


def as_ordinary_user(program, fuse_mode="666"):
    """Run the program, whose one argument is a directory of its own; what it prints."""
    with tempfile.TemporaryDirectory() as directory:  # pytest's are for their owner only
        return _as_ordinary_user(directory, program, fuse_mode)


def _as_ordinary_user(directory, program, fuse_mode):
    interpreter = os.path.realpath(sys._base_executable)
    packages = [str(Path(module.__file__).parent.parent) for module in (adyton, msgspec)]
    paths = [*packages, str(Path(PROBE).parent)]
    argument = json.dumps([os.path.realpath(sys.base_prefix), interpreter, paths, str(directory), program])
    done = subprocess.run(
        [sys.executable, "-c", AS_ORDINARY_USER, argument],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "FUSE_MODE": fuse_mode},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


START = """
import json, os, sys
from sandbox import alive, children, enclave, start_zygote, status, wait_until_ended, CodeError
"""


@pytest.mark.netns
def test_an_ordinary_user_has_enclaves_too():
    program = (
        START
        + """
with start_zygote(sys.argv[1]) as zygote, enclave(zygote) as one, enclave(zygote) as other:
    seen = {"warnings": one.guest("return finish(True, '/client', 'host')")}
    seen["ids"] = one.guest("import os; return os.getresuid()")
    seen["processes"] = one.guest("import os; return [n for n in os.listdir('/proc') if n.isdigit()]")
    seen["server"] = one.guest("import os; return [p for p in ('/root', '/home', '/opt/adyton/store') if os.path.exists(p)]")
    seen["fork"] = one.guest("import os; pid = os.fork(); os._exit(7) if pid == 0 else None; return os.waitpid(pid, 0)[1]")
    seen["null"] = one.guest("return open('/dev/null', 'wb').write(b'x')")
    seen["supervisor"] = one.supervisor("import os; return os.path.exists('/proc')")
    seen["look"] = one.supervisor("import os; return len(os.open('2/mem', os.O_RDONLY, dir_fd=started.proc).__str__())") > 0
    seen["capabilities"] = sorted({status(one.pid)[n] for n in ("CapInh", "CapPrm", "CapEff", "CapAmb")})
    seen["refused"] = []
    for pid in (other.pid, *children(other.pid), os.getpid()):
        try:
            one.supervisor(f"import os; os.kill({pid}, 0)")
        except CodeError as error:
            seen["refused"].append(str(error)[:24])
    try:
        open(f"/proc/{one.pid}/mem", "rb")
    except PermissionError:
        seen["closed"] = True
    processes = {one.pid, *children(one.pid), other.pid, *children(other.pid)}
    zygote.close()
    seen["left"] = sorted(wait_until_ended(processes))
print(json.dumps(seen))
"""
    )
    assert as_ordinary_user(program) == {
        "warnings": [],
        "ids": [1000] * 3,
        "processes": ["1", "2"],
        "server": [],
        "fork": 7 << 8,
        "null": 1,
        "supervisor": False,
        "look": True,
        "capabilities": ["0" * 16],
        "refused": ["PermissionError: [Errno "] * 4,
        "closed": True,
        "left": [],
    }


@pytest.mark.netns
def test_limits_and_programs_of_an_ordinary_users_enclaves_are_their_own():
    program = (
        START
        + """
THREADS = '''
import threading
finish(True, "/client", "host")
stop = threading.Event()
threads = [threading.Thread(target=stop.wait, daemon=True) for _ in range(10)]
for thread in threads:
    thread.start()
return len(threads)
'''
limits = {"threads": 14}
with start_zygote(sys.argv[1]) as zygote:
    with enclave(zygote, limits=limits, programs=["python"]) as one, enclave(zygote, limits=limits) as other:
        seen = {"threads": [one.guest(THREADS), other.guest(THREADS)]}
        command = "import subprocess, sys; return subprocess.run([sys.executable, '-S', '-c', 'print(1)'], capture_output=True).stdout.decode()"
        seen["started"] = one.guest(command)
        try:
            other.guest(command)
        except CodeError as error:
            seen["other"] = str(error)[:15]
        seen["score"] = one.guest("return open('/proc/self/oom_score_adj').read()")
print(json.dumps(seen))
"""
    )
    assert as_ordinary_user(program) == {
        "threads": [10, 10],
        "started": "1\n",
        "other": "PermissionError",
        "score": "300\n",
    }


@pytest.mark.netns
@pytest.mark.parametrize(("mode", "said"), [("600", "Permission denied"), ("", "there is no /dev/fuse")])
def test_without_fuse_the_start_fails_with_the_reason(mode, said):
    program = (
        START
        + """
from adyton.errors import PlatformError
try:
    start_zygote(sys.argv[1])
except PlatformError as error:
    print(json.dumps([str(error), error.exit_code, [each.name for each in error.failures]]))
"""
    )
    message, exit_code, failures = as_ordinary_user(program, mode)
    assert exit_code == 31
    assert failures == ["fuse"]
    assert said in message


def name_of(pid):
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()


def test_it_reaches_the_descriptors_of_every_thread_of_its_guest(zygote):
    """Of those that are no process's first thread too, in the way of Linux before 6.9 as well; and of nobody else's."""
    with enclave(zygote) as started:
        started.guest("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()")
        (guest,) = [each for each in children(started.pid) if name_of(each) == "enclave"]
        threads = sorted(int(each) for each in os.listdir(f"/proc/{guest}/task"))
        assert len(threads) == 2
        code = """
            from adyton.runtime.process.libc import system_call
            from adyton.runtime.process.supervisor.fetching import Fetcher
            fetcher = Fetcher(started.pid)
            found = []
            for find in (fetcher._process, fetcher._process_of_old):
                for thread in {threads}:
                    try:
                        descriptor = find(thread)
                        os.close(system_call("pidfd_getfd", descriptor, 0, 0))
                        os.close(descriptor)
                        found.append("reached")
                    except OSError as error:
                        found.append(error.errno)
            return found
        """
        assert started.supervisor(code.format(threads=threads)) == ["reached"] * 4
        assert set(started.supervisor(code.format(threads=[os.getpid()]))) <= {1, 9}  # EPERM, EBADF
