"""What an enclave lets a client do that keeps none of the rules."""

import os
import typing
from contextlib import ExitStack, suppress

import msgspec
import pytest
from hostile import EMPTY, STRICT, Client, Ward
from hypothesis import given, settings
from hypothesis import strategies as st
from thorough import few_or

from adyton.communicator.frames import CallFrame
from adyton.communicator.frames import encode as frame
from adyton.communicator.joining import SECRET, Answer
from adyton.communicator.messages import Grant, LoadRequest, Raised, decode
from adyton.handing_over import connect
from adyton.hostcall import abi
from adyton.hostcall.events import Event, Happened, Kind

pytestmark = pytest.mark.sandbox

WALLS = "[line.split()[1] for line in open('/proc/thread-self/status') if line.startswith(('CapEff', 'Seccomp:'))]"
INSIDE = "['0000000000000000', '2']"


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ward")
    for each in (directory, *directory.parents[:-1]):
        if "pytest" in str(each):
            each.chmod(0o755)
    ward = Ward(directory)
    yield ward
    ward.close()


def refusal(replied):
    assert not replied.ok
    raised = decode(replied.body, Raised)
    assert raised.kind == "state"
    return raised.message


def test_no_thread_of_the_guest_begins_before_its_walls_are_up(ward):
    with ward.enclave() as client:
        assert "not loaded" in client.enter("attempt", WALLS, pair=1).message
        assert "not loaded" in refusal(client.result(client.call("run", b"", 2)))
        assert "not loaded" in refusal(client.result(client.call("finalize", b"", 3)))
        loading = client.call("load", msgspec.msgpack.encode(EMPTY), 4)
        entering = client.start("attempt", WALLS, pair=5)
        assert client.result(loading).ok
        early = client.entered(entering)
        assert early == INSIDE or "not loaded" in early.message
        for pair in range(1, 7):
            assert client.enter("attempt", WALLS, pair=pair) == INSIDE


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "OPENSSL_CONF",
        "GLIBC_TUNABLES",
        "GCONV_PATH",
        "PATH",
        "a=b",
        "",
        "\0",
    ],
)
def test_the_enclave_itself_refuses_variables_that_its_loader_obeys(ward, name):
    with ward.enclave() as client:
        assert "environment" in refusal(client.load(msgspec.structs.replace(EMPTY, environment={name: "/tmp/x"})))
        assert "not loaded" in client.enter("attempt", "1").message


@pytest.mark.parametrize(
    "change",
    [
        {"time_zone": "/home/ann/zone"},
        {"time_zone": ":/home/ann/zone"},
        {"time_zone": "../../../home/ann/zone"},
        {"time_zone": "Europe/Vienna\0"},
        {"environment": {"HOME": "/\0"}},
        {"working_directory": "relative"},
        {"working_directory": "/a/../b"},
        {"working_directory": "/a\0"},
        {"working_directory": ""},
        {"working_directory": "/a" * 4096},
        {"grants": [Grant("/usr/lib", "read")]},
        {"grants": [Grant("/enclave", "write")]},
        {"grants": [Grant("/opt/adyton/lib/evil", "write")]},
        {"grants": [Grant("/lib64", "read")]},
        {"grants": [Grant("/a//b", "read")]},
        {"grants": [Grant("/home", "read")] * 100_000},
        {"grants": [Grant("/" + "a/" * 2000 + "a", "read")] * 1000},
        {"config": bytes(1 << 25)},
    ],
    ids=lambda change: str(change)[:60],
)
def test_the_enclave_itself_refuses_a_load_that_no_honest_client_sends(ward, change):
    with ward.enclave() as client:
        refusal(client.load(msgspec.structs.replace(EMPTY, **change)))
        assert "not loaded" in client.enter("attempt", "1").message
        assert "loaded already" in refusal(client.load())


def test_a_load_that_cannot_be_read_ends_the_enclave(ward):
    for body in (
        b"",
        b"\xc1",
        msgspec.msgpack.encode([b"", [], "/", "", {}, "n", "h", [], None, "more"]),
        b"\x91" * 100_000,
    ):
        with ward.enclave() as client:
            client.call("load", body)
            assert "LoadRequest" in client.wait_for_end()
            assert client.enclave.ended(60)


def test_methods_out_of_order_are_refused_and_do_no_harm(ward):
    with ward.enclave() as client:
        for method in ("host", "output", "exec", "load"):
            assert "no method" in refusal(client.result(client.call(method, b"", 0)))
        assert client.load().ok
        assert "loaded already" in refusal(client.load())
        assert client.enter("attempt", "1 + 1") == "2"
        assert client.result(client.call("finalize", b"")).ok
        assert "is finalized" in refusal(client.result(client.call("finalize", b"")))
        assert "is finalized" in client.enter("attempt", "1").message


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 100,
        b"\xff\xff\xff\xff",
        bytes(4),
        frame(CallFrame(2, 1, "load", 0, b"")),
        frame(CallFrame(1, 1, "load", 1 << 62, b"")),
        frame(CallFrame(1, 1, "load", 5, b"123")),
        frame(CallFrame(1, 1, "load", 1, b"x")) * 2,
    ],
    ids=lambda value: repr(value)[:60],
)
def test_garbage_in_the_channel_ends_the_enclave_with_a_reason(ward, data):
    with ward.enclave() as client:
        client.send_raw(data)
        assert "the enclave was ended" in client.wait_for_end()
        assert client.enclave.ended(60)


def test_garbage_before_the_handshake_ends_its_connection_alone(ward):
    with ward.enclave() as client:
        assert client.load().ok
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(70_000), bytes(100)):
            with connect(client.enclave.socket) as garbage, suppress(ConnectionError):
                garbage.settimeout(60)
                garbage.sendall(data)
                while garbage.recv(100):  # an alert, perhaps
                    pass
        assert client.enter("attempt", "1 + 1") == "2"


def test_connections_that_say_nothing_are_bounded_and_disturb_nobody(ward):
    with ward.enclave() as client, ExitStack() as silent:
        assert client.load().ok
        before = len(os.listdir(f"/proc/{client.enclave.pid}/fd"))
        held = [silent.enter_context(connect(client.enclave.socket)) for _ in range(50)]
        held[0].settimeout(60)
        assert held[0].recv(1) == b""  # it had to go for those that came later
        assert client.enter("attempt", "1 + 1") == "2"
        assert len(os.listdir(f"/proc/{client.enclave.pid}/fd")) <= before + 20


@pytest.mark.parametrize(("secret", "read"), [(bytes(SECRET), 0), (bytes(SECRET), 1 << 40), (None, 1 << 40)])
def test_who_does_not_know_the_session_or_lies_about_it_does_not_get_it(ward, secret, read):
    with ward.enclave() as client:
        assert client.load().ok
        other = Client(client.enclave.socket, secret=secret or client.secret, read=read)
        other.receive()
        other.socket.close()
        assert other.joined == Answer(joined=False, read=0, grace=0)
        assert client.enter("attempt", "1 + 1") == "2"


def test_a_session_that_has_begun_elsewhere_does_not_begin_again_in_another_enclave_of_the_image(ward):
    with ward.zygote.launch(ward.request) as enclave:
        client = Client(enclave.socket, read=1)
        client.receive()
        client.socket.close()
        assert client.joined == Answer(joined=False, read=0, grace=0)


WATCH = """
import ctypes, os
libc = ctypes.CDLL(None)
result = libc.inotify_add_watch(libc.inotify_init1(os.O_NONBLOCK), b"/there", 0xFFF)
"""


def test_events_that_a_client_makes_up_are_bounded_and_judged(ward):
    def answer(request):
        return attributes("directory") if isinstance(request, abi.Stat | abi.Look) else abi.Done()

    with ward.enclave(answer) as client:
        assert client.load(LOAD_THERE).ok
        assert client.enter("execute", WATCH) == 1
        names = ["x", "../x", "", "a/b", "x" * 255, "\u0000"]
        events = [Event("/there", name, kind) for name in names for kind in typing.get_args(Kind)] * 20
        for _ in range(50):
            client.session.notify("happened", msgspec.msgpack.encode(Happened(events)))
            client.send()
        assert client.enter("attempt", "1") == "1"
    for bad in (
        b"",
        b"\xc1",
        [["/there", "x", "burnt"]],
        [["/there", "x", "created", True, 1 << 32]],
        [["", "x", "created"]],
    ):
        with ward.enclave() as client:
            body = bad if isinstance(bad, bytes) else msgspec.msgpack.encode([bad])
            client.session.notify("happened", body)
            client.send()
            assert "Happened" in client.wait_for_end()


def attributes(kind="file", identity=7, size=100):
    return abi.Attributes(kind, identity, size, 0o644, 1, 0, 0, 0)


LOAD_THERE = LoadRequest(b"", [Grant("/there", "write")], "/there", "", {}, coherence=STRICT)

# What a client may answer to anything; few of these fit what was asked.
LIES = st.one_of(
    st.binary(max_size=64),
    st.sampled_from(
        [
            b"\x91" * 10_000,
            abi.Done(),
            abi.Failed("EACCES"),
            abi.Failed("ENOSYS"),
            abi.Failed("EWHAT"),
            attributes(),
            attributes(identity=8, size=(1 << 63) - 1),
            attributes("directory", 9),
            attributes("symlink", 10),
            attributes("other", 11),
            abi.Target("/proc/self/mem"),
            abi.Target("../../enclave/program.py"),
            abi.Target("a\0b"),
            abi.Entries([abi.Entry("..", attributes()), abi.Entry("a/b", attributes())], 0),
            abi.Entries([abi.Entry("a", attributes()), abi.Entry("a", attributes())], 0),
            abi.Entries([abi.Entry("usr", attributes())], 1 << 60),
            abi.Data(bytes(1 << 20)),
            abi.Data(b""),
            abi.Written(0),
            abi.Written(1 << 20),
            abi.Value(b"\xc1"),
        ]
    ),
)

CALLS = """
import random
chance = random.Random(SEED)
kinds = {"a", "b", "c/d", "c", "..", "x" * 255, "c/../b"}
path = lambda: "/there/" + chance.choice(sorted(kinds))
calls = [
    lambda: os.stat(path()), lambda: os.listdir(path()), lambda: open(path()).read(100_000), lambda: os.rmdir(path()),
    lambda: open(path(), "w").write("x" * 300_000), lambda: os.mkdir(path()), lambda: os.rename(path(), path()),
    lambda: os.unlink(path()), lambda: os.readlink(path()), lambda: os.truncate(path(), 1 << 20), lambda: os.utime(path()),
    lambda: os.chmod(path(), 0o600), lambda: os.access(path(), 2), lambda: os.chdir(path()),
    lambda: os.fsync(os.open(path(), os.O_RDWR | os.O_APPEND)), lambda: [each.stat() for each in os.scandir(path())],
]
result = set()
for _ in range(40):
    try:
        chance.choice(calls)()
    except (OSError, UnicodeError) as error:
        result.add(type(error).__name__)
result = sorted(result)
"""


@settings(max_examples=few_or(8, 20))
@given(data=st.data())
def test_a_lying_client_gets_errnos_raised_and_no_more(ward, data):
    def answer(request):
        if isinstance(request, abi.Stat) and data.draw(st.booleans()):
            return attributes(
                data.draw(st.sampled_from(["file", "directory", "symlink"])), data.draw(st.integers(7, 9))
            )
        return data.draw(LIES)

    with ward.enclave(answer) as client:
        assert client.load(LOAD_THERE).ok
        client.enter("execute", CALLS.replace("SEED", str(data.draw(st.integers(0, 1 << 30)))))
        assert (
            client.enter("attempt", "open('/enclave/program.py').read(1) and open('/etc/passwd').read(7)")
            == "'enclave'"
        )
        assert client.enter("attempt", "6 * 7", pair=5) == "42"


def test_no_answer_of_the_client_changes_how_the_next_is_asked_for(ward):
    """ENOSYS, where the kernel saw it, would turn an operation off for good."""

    def answer(request):
        match request:
            case abi.Stat("/there"):
                return attributes("directory", 1)
            case abi.Stat():
                return attributes()
            case abi.Open("/there/good") | abi.SetAttributes():
                return attributes()
            case abi.Read():
                return abi.Data(b"content")
        return abi.Failed("ENOSYS")

    with ward.enclave(answer) as client:
        assert client.load(LOAD_THERE).ok
        code = """
def error(do):
    try:
        return do()
    except OSError as error:
        return errno.errorcode[error.errno]
result = [error(lambda: open("/there/bad")), error(lambda: os.access("/there/bad", 2)), error(lambda: os.unlink("/there/x"))]
good = os.open("/there/good", os.O_RDWR)
result += [error(lambda: os.fsync(good)), error(lambda: os.fsync(good)), os.read(good, 7), error(lambda: open("/there/bad"))]
"""
        bad = "ENOTSUP"
        expected = [bad, False, bad, bad, bad, b"content", bad]
        assert [bad if each == "EOPNOTSUPP" else each for each in client.enter("execute", code)] == expected


def test_a_client_that_never_answers_holds_up_nobody_else(ward):
    def answer(request):
        return None if isinstance(request, abi.Stat) and "hang" in request.path else abi.Failed("EACCES")

    with ward.enclave(answer) as client, ward.enclave() as other:
        assert client.load(LOAD_THERE).ok
        assert other.load().ok
        for pair in range(1, 30):
            client.start("attempt", f"os.stat('/there/hang{pair}')", pair=pair)
        assert client.enter("attempt", "6 * 7", pair=99) == "42"
        assert other.enter("attempt", "6 * 7") == "42"
        client.close()
        assert client.enclave.ended(60)


def test_a_client_that_never_reads_makes_the_enclave_hold_little_and_end_at_once(ward, capfd):
    with ward.enclave() as client:
        assert client.load().ok
        client.start("execute", "os.write(1, bytes(1 << 26))")
        for pair in range(2, 60):
            client.start("attempt", "'x' * (1 << 20)", pair=pair)
        client.close()
        assert client.enclave.ended(60)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x91\xa4Done", b"\x93\xa5Value\x00\x00", b"\x91" * 10_000],
    ids=lambda body: repr(body)[:60],
)
def test_a_functions_answer_that_cannot_be_read_is_an_oserror(ward, body):
    with ward.enclave(lambda request: body if isinstance(request, abi.Call) else abi.Failed("EACCES")) as client:
        assert client.load().ok
        code = """
from adyton.trusted import host_function
@host_function
def lookup(word: str) -> str: ...
try:
    result = lookup("x")
except OSError as error:
    result = error.errno
"""
        assert client.enter("execute", code) == 5


def test_threads_that_the_guest_is_too_busy_to_begin_with_are_refused(ward):
    def answer(request):
        return None if request.path == "/there/held" else abi.Attributes("directory", 8, 0, 0o755, 1, 0, 0, 0)

    with ward.enclave(answer) as client:
        assert client.load(msgspec.structs.replace(EMPTY, grants=[Grant("/there", "read")])).ok
        assert client.enter("attempt", "1") == "1"
        code = "ctypes.PyDLL(None).access(b'/there/held', 0)"  # none of its threads runs until the client answers
        held = client.start("attempt", code)
        client.pump(lambda: client.unanswered)
        numbers = [client.start("attempt", "1", pair=pair) for pair in range(10, 1010)]
        refused = client.result(numbers[-1])
        assert "no more threads" in refusal(refused)
        client.session.reply(client.unanswered.pop(), True, msgspec.msgpack.encode(abi.Failed("ENOENT")))
        assert client.entered(held) == "-1"
        assert client.enter("attempt", "6 * 7", pair=1) == "42"
