"""What an enclave's program, which does all that it can, achieves against its supervisor, its server and its neighbours."""

import os
import signal
import socket
import struct
import threading
from contextlib import contextmanager

import pytest
from hostile import STRICT, Ward
from sandbox import guest_of, wait_until_ended

from adyton.attestation.identity import EnclaveIdentity
from adyton.communicator.messages import Grant, LoadRequest
from adyton.hostcall import abi
from adyton.runtime.process.guest.run import THREAD
from adyton.runtime.process.guest_start import READY
from adyton.runtime.process.supervisor import serve
from adyton.runtime.process.supervisor.proving import simulated

sandboxed = pytest.mark.sandbox

# What the attacks below have at hand.
KIT = """
import errno, fcntl, mmap, msgspec, struct
from adyton.trusted import host_function

@host_function
def lookup(word: str) -> str: ...

def kind(descriptor):
    try:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            return sock.type
    except OSError:
        return None

kinds = {int(name): kind(int(name)) for name in os.listdir("/proc/self/fd")}
control = socket.socket(fileno=os.dup(next(fd for fd, kind in kinds.items() if kind == socket.SOCK_SEQPACKET)))
links = [socket.socket(fileno=os.dup(fd)) for fd, kind in sorted(kinds.items()) if kind == socket.SOCK_STREAM]

def frame(*fields):
    body = msgspec.msgpack.encode(fields)
    return struct.pack("<I", len(body)) + body

def thread(descriptor):
    socket.send_fds(control, [b"thread"], [descriptor])

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

def call(number, *arguments):
    result = _libc.syscall(ctypes.c_long(number), *[ctypes.c_long(each) for each in arguments])
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]
"""


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ward")
    for each in (directory, *directory.parents[:-1]):
        if "pytest" in str(each):
            each.chmod(0o755)
    ward = Ward(directory)
    yield ward
    ward.close()


def run(client, code, **keywords):
    return client.enter("execute", KIT + code, **keywords)


@sandboxed
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("links[0].sendall(bytes([255] * 100))", "message of 4294967295 bytes"),
        ("links[1].sendall(bytes([0] * 8))", "malformed message"),
        ("links[1].sendall(frame('Return', True, b'x') * 3); time.sleep(5)", "returned from a call that nobody made"),
        ("links[0].sendall(frame('Return', True, b'x')); time.sleep(5)", "returned from a call that nobody made"),
        ("links[1].sendall(frame('HostCall', 'a', b'') * 2); time.sleep(5)", "out of turn"),
        ("links[0].sendall(frame('HostCall', 'a', b'')); time.sleep(5)", "out of turn"),
        ("links[1].sendall(frame('Enter', 'load', b'')); time.sleep(5)", "malformed message"),
        ("control.send(b'x' * 100_000); time.sleep(5)", "unexpected control message"),
        ("control.send(b'ready'); time.sleep(5)", "unexpected control message"),
        ("control.send(b'thread'); time.sleep(5)", "unexpected control message"),
        ("thread(os.open('/enclave', 0)); time.sleep(5)", "non-socket"),
        ("thread(os.pipe()[0]); time.sleep(5)", "non-socket"),
        ("os._exit(7)", "status 7"),
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("import signal; signal.raise_signal(signal.SIGSYS); ctypes.CDLL(None).abort()", "SIG"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_breach_of_the_links_ends_the_enclave_with_a_reason(ward, code, reason):
    with ward.enclave() as client:
        assert client.load().ok
        client.start("execute", KIT + code)
        assert reason in client.wait_for_end()
        assert client.enclave.ended(60)


@sandboxed
def test_descriptors_that_the_supervisor_is_handed_do_it_no_harm(ward):
    with ward.enclave() as client:
        assert client.load().ok
        run(client, "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); thread(a.fileno()); b.send(b'')")
        run(client, "a, b = socket.socketpair(); socket.send_fds(control, [b'thread'], [a.fileno()] * 200)")
        run(client, "thread(links[0].fileno())")
        assert client.enter("attempt", "6 * 7") == "42"


@sandboxed
def test_any_number_of_threads_one_after_another_may_call_the_client(ward):
    with ward.enclave(lambda _request: abi.Failed("EACCES")) as client:
        assert client.load().ok
        code = """
failed = []
def look():
    try:
        lookup("word")
    except PermissionError:
        failed.append(1)
for _ in range(300):
    one = threading.Thread(target=look)
    one.start()
    one.join()
result = len(failed)
"""
        assert run(client, code) == 300
        assert sum(isinstance(each, abi.Call) for each in client.asked) == 300


@sandboxed
def test_a_link_too_many_is_the_trouble_of_its_thread_alone(ward):
    with ward.enclave() as client:
        assert client.load().ok
        code = """
pairs = [socket.socketpair() for _ in range(400)]
for mine, other in pairs:
    thread(other.fileno())
    other.close()
result = sum(mine.recv(1) == b"" for mine, _ in pairs[256:])
"""
        assert run(client, code) == 144
        assert client.enter("attempt", "6 * 7", pair=9) == "42"


@sandboxed
@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ("frame('Return', True, b'', 1, [1 << 20])", "returned from a call that nobody made"),
        ("frame('Return', True, b'', 0, [1 << 20])", "returned from a call that nobody made"),
        ("frame('Return', True, b'', 1)", "returned from a call that nobody made"),
        ("frame('HostCall', 'lookup', b'', None, '', [1 << 15])", "malformed message"),
        ("frame('HostCall', 'lookup', b'', None, '', [1 << 20] * 34)", "malformed message"),
        ("frame('HostCall', 'lookup', b'', None, '', [1 << 16]) + b'\\xff' * ((1 << 16) + 8)", "at most"),
        ("frame('HostCall', 'lookup', b'') + frame('HostCall', 'lookup', b'')", "out of turn"),
    ],
)
def test_what_a_link_of_the_programs_own_must_not_carry_ends_the_enclave(ward, messages, text):
    """Results of calls that are not under way, sizes that cannot be, more than was said, a call in the middle of another."""
    with ward.enclave(lambda request: None if isinstance(request, abi.Call) else abi.Failed("EACCES")) as client:
        assert client.load().ok
        code = "mine, other = socket.socketpair(); thread(other.fileno())"
        client.start("execute", f"{KIT}\n{code}\nmine.sendall({messages})\nmine.recv(1)")
        client.pump(lambda: client.ended)
        assert text in client.ended


@sandboxed
def test_what_shows_of_the_server(ward):
    with ward.enclave() as client:
        assert client.load().ok
        shown = run(
            client, "result = {name: open(f'/proc/self/{name}').read() for name in ('cgroup', 'environ', 'cmdline')}"
        )
        assert all(line.endswith(":/") for line in shown["cgroup"].split())
        assert "/opt/adyton" in shown["cmdline"]
        for text in shown.values():
            assert "site-packages" not in text
            assert str(ward.directory) not in text
        assert run(
            client, "result = [os.uname().nodename, os.getuid(), os.listdir('/sys') if os.path.exists('/sys') else 0]"
        ) == [
            "enclave",
            1000,
            0,
        ]
        sockets = run(client, "result = open('/proc/net/unix').read().splitlines()[1:]")
        assert sockets == []


@sandboxed
def test_walls_hold_from_within(ward):
    with ward.enclave() as client:
        assert client.load().ok
        assert run(client, "result = [call(0x40000000 + 39), call(0xFFFFFFF0), call(600)]") == ["ENOSYS"] * 3
        assert (
            run(
                client,
                "result = [call(56, flag | 17, 0, 0, 0, 0) for flag in (0x20000, 0x2000000, 0x10000000, 0x40000000)]",
            )
            == ["EPERM"] * 4
        )
        assert run(client, "result = call(72, os.open('/usr/lib', 0), 1026, 0x80000002)") == "EINVAL"
        writes = "/proc/sys/kernel/core_pattern /proc/sys/net/ipv4/ip_forward /proc/sys/user/max_user_namespaces /proc/self/setgroups"
        code = f"""
def write(path):
    try:
        os.write(os.open(path, os.O_WRONLY), b'1')
    except OSError as error:
        return errno.errorcode[error.errno]
result = {{write(path) for path in {writes.split()!r}}}
"""
        assert set(run(client, code)) <= {"EACCES", "EPERM"}


@sandboxed
def test_what_is_the_clients_is_never_mapped_as_code(ward):
    content = bytes.fromhex("c3") * 4096

    def answer(request):
        attributes = abi.Attributes("file", 7, len(content), 0o755, 1, 0, 0, 0)
        match request:
            case abi.Open() | abi.Stat("/there/code.so"):
                return attributes
            case abi.Stat("/there"):
                return abi.Attributes("directory", 8, 0, 0o755, 1, 0, 0, 0)
            case abi.Read(_, offset, size):
                return abi.Data(content[offset : offset + size])
            case abi.Close():
                return abi.Done()
        return abi.Failed("EACCES")

    with ward.enclave(answer) as client:
        load = LoadRequest(b"", [Grant("/there", "read")], "/there", "", {}, coherence=STRICT)
        assert client.load(load).ok
        code = """
file = os.open("/there/code.so", os.O_RDONLY)
assert mmap.mmap(file, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)[:1] == b"\\xc3"
try:
    mmap.mmap(file, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
except OSError as error:
    result = errno.errorcode[error.errno]
"""
        assert run(client, code) == "EPERM"


@sandboxed
def test_private_files_and_output_are_bounded(ward):
    with ward.enclave() as client:
        assert client.load().ok
        code = """
result = []
for path in ("/tmp/x", "/dev/shm/x"):
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                written += file.write(bytes(1 << 20))
    except OSError as error:
        result.append(errno.errorcode[error.errno])
        os.unlink(path)
"""
        assert run(client, code) == ["ENOSPC", "ENOSPC"]
        assert run(client, "os.write(1, bytes(1 << 24)); result = 1") == 1
        assert len(client.output) == 1 << 24


class _Guest:
    """A guest's end in the test's own hands."""

    fuse = stdout = stderr = pidfd = None

    def __init__(self):
        self.control, self.mine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_messages_that_never_end_are_bounded_together(monkeypatch):
    monkeypatch.setattr(serve, "MAX_ARRIVING", 1 << 16)
    digest = "sha256:" + "0" * 64
    identity = EnclaveIdentity("sim", digest, "", 0, 0, True, digest, "")
    guest = _Guest()
    client, relay = socket.socketpair()
    program = serve.Program("application", [], debug=True)
    ready = threading.Event()
    supervisor = serve.Supervisor(relay, guest, program, identity, simulated(identity), None, ready.set)
    reasons = []
    thread = threading.Thread(target=lambda: reasons.append(supervisor.run()))
    thread.start()
    with client, guest.mine:
        guest.mine.send(READY)
        assert ready.wait(60)
        links = []
        for _ in range(3):
            mine, other = socket.socketpair()
            links.append(mine)
            with other:
                socket.send_fds(guest.mine, [THREAD], [other.fileno()])
            mine.sendall(struct.pack("<I", 1 << 20) + bytes(30_000))
        thread.join(60)
        assert not thread.is_alive()
        for mine in links:
            mine.close()
    assert "more than 65536 bytes" in reasons[0]


@sandboxed
def test_a_client_that_is_behind_still_gets_all_output_and_the_reason_of_the_end(ward):
    with ward.enclave() as client:
        assert client.load().ok
        guest = guest_of(client.enclave.pid)
        client.start("execute", KIT + "os.write(1, bytes(3 << 20)); os._exit(7)")
        assert wait_until_ended({guest}) == set()  # and nothing has been read meanwhile
        assert "status 7" in client.wait_for_end()
        assert len(client.output) == 3 << 20


# Of a supervisor that tells of it to who does not listen.
BREACH = """
os.dup2(os.open("/tmp/private", os.O_RDWR | os.O_CREAT), 900)
os.write(1, bytes(3 << 20))
ctypes.CDLL(None).recv(900, ctypes.create_string_buffer(10), 10, 0)
"""


@contextmanager
def gave_a_file(ward):
    """A client whose guest has given its supervisor a file that is served there, and is no more."""
    request = LoadRequest(b"", [Grant("/tmp/there", "read")], "/nowhere", "", {})  # /tmp is the supervisor's to serve
    with ward.enclave() as client:
        assert client.load(request).ok
        guest = guest_of(client.enclave.pid)
        client.start("execute", BREACH)
        assert wait_until_ended({guest}) == set()  # though it has such a file to close, too
        yield client


@sandboxed
def test_a_file_given_for_a_socket_ends_the_guest_before_anybody_has_been_told(ward):
    with gave_a_file(ward) as client:
        assert "descriptor 900" in client.wait_for_end()
        assert len(client.output) == 3 << 20


@sandboxed
def test_a_supervisor_that_was_given_a_file_can_be_killed_while_it_tells_of_that(ward):
    """At its end that file is closed, which nobody would answer, were its device not closed before."""
    with gave_a_file(ward) as client:
        os.kill(client.enclave.pid, signal.SIGKILL)
        assert wait_until_ended({client.enclave.pid}) == set()
