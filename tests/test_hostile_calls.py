"""A program that makes every system call with garbage, races with its own memory and pulls at /proc: it ends, or is told no, by itself."""

from __future__ import annotations

import platform

import pytest
from hostile import Ward
from sandbox import children, guest_of, status, wait_until_ended

from adyton.communicator.messages import Grant, LoadRequest
from adyton.hostcall import abi
from adyton.runtime.process.table import ROWS, architecture

pytestmark = pytest.mark.sandbox

KIT = """
import ctypes, errno, mmap, random, select, signal, struct, time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(each) for each in arguments])
    return "done" if result >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")

def in_child(step, seconds=0.25):
    '''What a forked process says, or how it ended; killed after that time, with all that it has started.'''
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.close(reader)
            step(writer)
        finally:
            os._exit(0)
    os.close(writer)
    said = b""
    handle = os.pidfd_open(child)
    select.select([handle], [], [], seconds)
    for target in (lambda: os.killpg(child, 9), lambda: os.kill(child, 9)):
        try:
            target()
        except OSError:
            pass
    os.waitpid(child, 0)
    os.set_blocking(reader, False)
    try:
        said = os.read(reader, 1 << 16)
    except BlockingIOError:
        pass
    os.close(reader)
    os.close(handle)
    return said.decode()
"""


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ward")
    directory.chmod(0o755)
    ward = Ward(directory)
    yield ward
    ward.close()


def begin(client, code):
    return client.start("execute", KIT + code)


def run(client, code):
    return client.enter("execute", KIT + code)


EVERY_CALL = """
area = mmap.mmap(-1, 1 << 16)
inside = ctypes.addressof(ctypes.c_char.from_buffer(area))
GARBAGE = [0, 0x4141414141414141, inside, 8, (1 << 63) - 1, -1]
TO_ALL = {62, 129} if os.uname().machine == "x86_64" else {129, 138}  # kill(-1), rt_sigqueueinfo(-1): the program itself

def every(number):
    def step(writer):
        os.dup2(writer, 1000)
        os.close(writer)
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (1, 2):
            os.dup2(null, standard)
        for value in GARBAGE:
            if value != -1 or number not in TO_ALL:
                said = call(number, *[value] * 6)
                os.write(1000, f"{said} ".encode())
    return step

# What is refused returns at once, however busy the machine is; of the others some never return.
result = {number: in_child(every(number), 60 if number in REFUSED else 0.1).split() for number in NUMBERS}
"""


def test_every_call_with_garbage_does_what_its_row_says_and_harms_nobody(ward):
    where = architecture()
    numbers = [*range(500), 1023, 4095]
    refused = {each.number(where): each.refused.errno for each in ROWS if each.refused}
    known = {each.number(where) for each in ROWS}
    with ward.enclave() as client, ward.enclave() as neighbour:
        assert client.load().ok
        assert neighbour.load().ok
        at_once = {number for number in numbers if number in refused or number not in known}
        call = begin(client, f"NUMBERS = {numbers!r}; REFUSED = {at_once!r}" + EVERY_CALL)
        for _ in range(50):
            assert neighbour.enter("attempt", "6 * 7") == "42"
        said = client.entered(call)
        assert said.keys() == set(numbers)
        for number in numbers:
            if number in refused:
                assert set(said[number]) == {refused[number]}, number
            elif number not in known:
                assert set(said[number]) == {"ENOSYS"}, number
        # and neither the program, nor its supervisor, nor anybody else has noticed
        assert client.enter("attempt", "6 * 7") == "42"
        assert neighbour.enter("attempt", "6 * 7") == "42"
        assert status(client.enclave.pid)["Name"] == "adyton-super"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="NOT X86-64: there are no other calls")
def test_calls_of_other_architectures_end_the_process_or_do_not_exist(ward):
    with ward.enclave() as client:
        assert client.load().ok
        assert run(client, "result = sorted({call(0x40000000 + number, 0, 0, 0) for number in range(600)})") == [
            "ENOSYS"
        ]
        code = """
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov $20,%eax (getpid of 32 bits); int $0x80; ret
function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
child = os.fork()
if child == 0:
    function()
    os._exit(0)
result = -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
        assert run(client, code) == 31  # SIGSYS
        assert client.enter("attempt", "6 * 7") == "42"


def answering(request):
    """A client that has a directory /there, full of anything."""
    match request:
        case abi.Stat("/there") | abi.Stat("/"):
            return abi.Attributes("directory", 8, 0, 0o755, 1, 0, 0, 0)
        case abi.Stat() | abi.Open():
            return abi.Attributes("file", 7, 4096, 0o644, 1, 0, 0, 0)
        case abi.Read(_, offset, size):
            return abi.Data(bytes(4096)[offset : offset + size])
        case abi.Write(_, _, data):
            return abi.Written(len(data))
        case abi.Close() | abi.Access():
            return abi.Done()
    return abi.Failed("EACCES")


def load_with_folder(client):
    return client.load(LoadRequest(b"", [Grant("/there", "write")], "/there", "", {}))


def test_a_program_that_changes_its_memory_while_its_supervisor_reads_it(ward):
    """A denied look-up makes the supervisor read which path was meant."""
    code = """
area = mmap.mmap(-1, 8192)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
PATHS = [b"/home/ann/a\\0", b"/" + b"x/" * 2000 + b"\\0", b"/home/../../..\\0", bytes([255] * 4096), b"relative\\0", b"\\0", b"/home"]

def change():
    chance = random.Random(1)
    while True:
        path = chance.choice(PATHS)
        ctypes.memmove(address, path, len(path))
        if chance.random() < 0.1:
            libc.madvise(ctypes.c_void_p(address), 8192, 4)
            libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), 0)
            libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), 3)

ctypes.memmove(address, PATHS[0], len(PATHS[0]))

def opener(_):
    threading.Thread(target=change, daemon=True).start()
    for number in range(300):
        libc.open(ctypes.c_void_p(address), number & 3)
        libc.openat(ctypes.c_int(number - 150), ctypes.c_void_p(address + 4096 * (number & 1) - 3), 0)
        libc.syscall(ctypes.c_long(437), ctypes.c_long(-100), ctypes.c_void_p(address), ctypes.c_void_p(address), 24)

for _ in range(4):
    in_child(opener, 5)
result = "done"
"""
    with ward.enclave(answering) as client, ward.enclave() as neighbour:
        assert load_with_folder(client).ok
        assert neighbour.load().ok
        number = begin(client, code)
        for _ in range(20):
            assert neighbour.enter("attempt", "6 * 7") == "42"
        assert client.entered(number) == "done"
        assert client.enter("attempt", "6 * 7") == "42"


def test_file_operations_in_any_order_from_processes_that_are_killed_meanwhile(ward):
    code = """
def storm(seed):
    def step(_):
        chance = random.Random(seed)
        names = ["/there", "/there/a", "/there/b/c", "/there/../there/a", "/tmp/p", "/tmp", "/", "/nowhere", "a", "/there/" + "n" * 255]
        files = [os.open("/dev/null", os.O_RDWR)]
        steps = [
            lambda: files.append(os.open(chance.choice(names), chance.getrandbits(18), 0o600)),
            lambda: os.read(chance.choice(files), 100), lambda: os.write(chance.choice(files), bytes(100)),
            lambda: os.lseek(chance.choice(files), chance.getrandbits(40), chance.randrange(5)),
            lambda: os.ftruncate(chance.choice(files), chance.getrandbits(20)), lambda: os.fsync(chance.choice(files)),
            lambda: os.rename(chance.choice(names), chance.choice(names)), lambda: os.link(chance.choice(names), chance.choice(names)),
            lambda: os.unlink(chance.choice(names)), lambda: os.mkdir(chance.choice(names)), lambda: os.rmdir(chance.choice(names)),
            lambda: os.listdir(chance.choice(names)), lambda: os.stat(chance.choice(names)), lambda: os.statvfs(chance.choice(names)),
            lambda: os.symlink(chance.choice(names), chance.choice(names)), lambda: os.readlink(chance.choice(names)),
            lambda: os.chmod(chance.choice(names), chance.getrandbits(12)), lambda: os.utime(chance.choice(names), (1, 2)),
            lambda: os.getxattr(chance.choice(names), "user.x"), lambda: os.copy_file_range(chance.choice(files), chance.choice(files), 9),
            lambda: files.pop() if len(files) > 1 else None, lambda: mmap.mmap(chance.choice(files), 4096)[0],
            lambda: os.posix_fallocate(chance.choice(files), 0, 9), lambda: __import__("fcntl").flock(chance.choice(files), 6),
            lambda: os.mkfifo(chance.choice(names)), lambda: os.chdir(chance.choice(names)), lambda: os.dup(chance.choice(files)),
        ]
        while True:
            try:
                chance.choice(steps)()
            except (OSError, ValueError):
                pass
    return step

for seed in range(6):
    threads = [threading.Thread(target=in_child, args=(storm(seed * 10 + each), 0.2)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
result = "done"
"""
    with ward.enclave(answering) as client, ward.enclave() as neighbour:
        assert load_with_folder(client).ok
        assert neighbour.load().ok
        number = begin(client, code)
        for _ in range(20):
            assert neighbour.enter("attempt", "6 * 7") == "42"
        assert client.entered(number) == "done"
        assert client.enter("attempt", "6 * 7") == "42"


def test_proc_shows_and_takes_nothing_of_others(ward):
    code = """
def attempt(step):
    try:
        return step()
    except OSError as error:
        return errno.errorcode[error.errno]

def write(path, data=b"1"):
    return lambda: os.write(os.open(path, os.O_WRONLY), data)

result = {
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "init": {attempt(lambda name=name: bool(os.open(f"/proc/1/{name}", os.O_RDONLY))) for name in ("mem", "environ", "maps", "auxv", "stack", "syscall")},
    "its files": attempt(lambda: os.listdir("/proc/1/fd")),
    "its root": attempt(lambda: os.listdir("/proc/1/root")),
    "to init": attempt(lambda: os.pwrite(os.open("/proc/1/mem", os.O_RDWR), b"x", 0)),
    "parent": os.getppid(),
    "writes": {attempt(write(f"/proc/{name}")) for name in (
        "sysrq-trigger", "sys/kernel/core_pattern", "sys/kernel/modprobe", "sys/vm/drop_caches", "self/uid_map", "self/loginuid",
        "sys/kernel/ns_last_pid", "sys/fs/binfmt_misc/register", "irq/default_smp_affinity", "self/setgroups",
    )},
    "spared": attempt(write("/proc/self/oom_score_adj", b"-1000")),
    "a socket again": attempt(lambda: os.open(f"/proc/self/fd/{next(int(n) for n in os.listdir('/proc/self/fd') if 'socket' in os.readlink('/proc/self/fd/' + n))}", os.O_RDWR)),
    "interpreter": attempt(lambda: bool(os.open("/proc/self/exe", os.O_WRONLY))),
    "code": attempt(lambda: bool(os.open("/usr/lib/../lib", os.O_TMPFILE | os.O_RDWR))),
    "fuse": attempt(lambda: os.mknod("/dev/shm/fuse", 0o20666, os.makedev(10, 229))),
    "memory": attempt(lambda: os.mknod("/dev/shm/mem", 0o20666, os.makedev(1, 1))),
    "ended": [attempt(lambda number=number: os.kill(1, number)) for number in (9, 19, 15)],
}
result = {name: sorted(map(str, value)) if isinstance(value, set) else value for name, value in result.items()}
"""
    with ward.enclave() as client, ward.enclave() as neighbour:
        assert client.load().ok
        assert neighbour.load().ok
        shown = run(client, code)
        assert shown.pop("processes") == [1, 2]
        assert shown.pop("parent") == 0
        assert shown.pop("ended") == [None] * 3  # which init does not feel
        for name in ("init", "writes"):
            assert set(shown.pop(name)) <= {"EACCES", "EPERM", "ENOENT", "EROFS", "EINVAL"}, name
        assert shown.pop("a socket again") == "ENXIO"
        assert set(shown.values()) <= {"EACCES", "EPERM", "EROFS", "ETXTBSY", "EISDIR", "EOPNOTSUPP"}, shown
        assert client.enter("attempt", "6 * 7") == "42"
        assert status(guest_of(client.enclave.pid))["Name"] == "enclave"


def test_a_program_that_kills_all_that_it_sees_ends_alone(ward):
    with ward.enclave() as client, ward.enclave() as neighbour:
        assert client.load().ok
        assert neighbour.load().ok
        processes = children(client.enclave.pid)
        begin(client, "os.fork() or os.kill(-1, 9)\ntime.sleep(60)")
        assert "SIGKILL" in client.wait_for_end()
        assert client.enclave.ended(60)
        assert wait_until_ended(processes) == set()
        assert neighbour.enter("attempt", "6 * 7") == "42"
