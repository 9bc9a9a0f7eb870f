"""What an enclave lets a client do that keeps none of the rules."""

import msgspec
import pytest
from hostile import EMPTY, Ward

from adyton.communicator.frames import CallFrame
from adyton.communicator.frames import encode as frame
from adyton.communicator.messages import Grant, Raised, decode

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
    ids=str,
)
def test_the_enclave_itself_refuses_a_load_that_no_honest_client_sends(ward, change):
    with ward.enclave() as client:
        refusal(client.load(msgspec.structs.replace(EMPTY, **change)))
        assert "not loaded" in client.enter("attempt", "1").message
        assert "loaded already" in refusal(client.load())


def test_a_load_that_cannot_be_read_ends_the_enclave(ward):
    for body in (b"", b"\xc1", msgspec.msgpack.encode([b"", [], "/", "", {}, "more"]), b"\x91" * 100_000):
        with ward.enclave() as client:
            client.call("load", body)
            assert "LoadRequest" in client.wait_for_end()
            assert client.enclave.ended(5)


def test_methods_out_of_order_are_refused_and_do_no_harm(ward):
    with ward.enclave() as client:
        for method in ("host", "output", "exec", "load"):
            assert "no method" in refusal(client.result(client.call(method, b"", 0)))
        assert client.load().ok
        assert "loaded already" in refusal(client.load())
        assert client.enter("attempt", "1 + 1") == "2"
        assert client.result(client.call("finalize", b"")).ok
        assert "FINALIZED" in refusal(client.result(client.call("finalize", b"")))
        assert "FINALIZED" in client.enter("attempt", "1").message


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
    ids=repr,
)
def test_garbage_in_the_channel_ends_the_enclave_with_a_reason(ward, data):
    with ward.enclave() as client:
        client.send_raw(data)
        assert "the enclave was ended" in client.wait_for_end()
        assert client.enclave.ended(5)


def test_garbage_before_the_handshake_ends_the_enclave(ward):
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(70_000), bytes(100)):
        with ward.zygote.launch(ward.request) as enclave:
            try:
                enclave.socket.sendall(data)
            except ConnectionError:
                pass
            assert enclave.ended(5)
