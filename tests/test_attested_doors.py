"""Doors of attested connections: what goes through them, gRPC's connections above all; and connections of enclaves that were loaded."""

import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from test_attested_sockets import ANN, BOB, SECRET, Enclave, of

import adyton.trusted as trusted
from adyton import EnclaveManager, EnclaveManagerOptions, Expectation, FakeEnclaveLoader
from adyton.errors import ExpectationError, UnauthenticatedError, UsageError
from adyton.proto.enclave import EnclaveLoadConfig
from adyton.trusted import channel, proving
from adyton.trusted.doors import Served


class As:
    """This thread is of that enclave."""

    def __init__(self, enclave):
        self._enclave = enclave

    def __enter__(self):
        proving.connection.connect(self._enclave, whole_process=False)

    def __exit__(self, *_):
        proving.connection.connect(None, whole_process=False)


@pytest.fixture
def greeter():
    """A gRPC server behind BOB's door, for ANN: the door, and who called."""
    callers = []
    doors = []

    def handle(request, context):
        callers.append(doors[0].peer(context.peer()))
        return request[::-1]

    def stream(requests, _):
        yield from requests

    handlers = {
        "Greet": grpc.unary_unary_rpc_method_handler(handle),
        "Echo": grpc.stream_stream_rpc_method_handler(stream),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Greeter", handlers)])
    local = f"unix-abstract:adyton-test-{id(callers)}"
    server.add_insecure_port(local)
    server.start()
    with As(BOB):
        doors.append(channel.serve("127.0.0.1:0", to=local, expect=of(ANN)))
    yield doors[0], callers
    doors[0].close()
    server.stop(None).wait()


def place(door):
    return f"127.0.0.1:{door.address[1]}"


def test_grpc_calls_go_through_and_the_server_knows_who_calls(greeter):
    door, callers = greeter
    with As(ANN), channel.dial(place(door), expect=of(BOB)) as dialled:
        assert dialled.peer.measurement == BOB.identity.measurement
        with grpc.insecure_channel(dialled.target) as calls:
            assert calls.unary_unary("/Greeter/Greet")(SECRET, timeout=60) == SECRET[::-1]
            large = [bytes([each]) * 1_000_000 for each in range(8)]
            assert list(calls.stream_stream("/Greeter/Echo")(iter(large), timeout=60)) == large
    assert [each.measurement for each in callers] == [ANN.identity.measurement]


def test_several_clients_share_a_door(greeter):
    door, _ = greeter
    with As(ANN), channel.dial(place(door), expect=of(BOB)) as dialled:

        def call(number):
            with grpc.insecure_channel(dialled.target, [("grpc.use_local_subchannel_pool", 1)]) as calls:
                return calls.unary_unary("/Greeter/Greet")(b"%d" % number, timeout=60)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(call, range(12))) == [(b"%d" % each)[::-1] for each in range(12)]


def test_each_side_refuses_whom_it_does_not_expect(greeter, caplog):
    door, callers = greeter
    with As(ANN), pytest.raises(ExpectationError):
        channel.dial(place(door), expect=of(Enclave("c")))
    with As(Enclave("c")), caplog.at_level(logging.WARNING), pytest.raises(UnauthenticatedError):
        channel.dial(place(door), expect=of(BOB))
    assert not callers
    door.close()
    assert "adyton.trusted.channel" in {each.name for each in caplog.records}


def test_a_door_leads_nowhere_but_into_the_enclave():
    with As(BOB):
        for to in ("127.0.0.1:50051", "unix:", "greeter"):
            with pytest.raises(UsageError, match="is the client's"):
                channel.serve("127.0.0.1:0", to=to, expect=of(ANN))
        with pytest.raises(UsageError, match="HOST:PORT"):
            channel.dial("127.0.0.1", expect=of(ANN))


def test_a_closed_door_cuts_what_it_carried(tmp_path):
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "local"))
        local.listen()
        with As(BOB):
            door = channel.serve("127.0.0.1:0", to=f"unix:{tmp_path}/local", expect=of(ANN))
        with As(ANN), channel.wrap(socket.create_connection(door.address), expect=of(BOB)) as ann:
            bob, _ = local.accept()
            with bob:
                ann.sendall(b"hello")
                assert bob.recv(9) == b"hello"
                door.close()
                with pytest.raises(ConnectionResetError):
                    ann.recv(1)
                assert bob.recv(1) == b""


def test_a_closed_door_waits_for_nobody_who_has_not_proven_what_he_is(tmp_path):
    entered, ended = threading.Event(), threading.Event()

    def meet(sock, *, server_side):
        assert server_side
        entered.set()
        while sock.recv(1):
            pass
        ended.set()
        raise ConnectionResetError

    door = Served("127.0.0.1:0", f"unix:{tmp_path}/local", meet, 30)
    with socket.create_connection(door.address) as silent:
        assert entered.wait(30)
        door.close()
        assert ended.wait(30)
        assert silent.recv(1) == b""


# -- enclaves -------------------------------------------------------------------------------------------------------------

app = trusted.Enclave("pair")


def like_me():
    return Expectation(platforms=["sim"], measurement=[trusted.channel.own_identity().measurement], debug=True)


class Listener:
    sock = None


@app.entry
def listen() -> int:
    Listener.sock = socket.create_server(("127.0.0.1", 0))
    return Listener.sock.getsockname()[1]


@app.entry
def take(most: int) -> bytes:
    with Listener.sock as listener:
        taken, _ = listener.accept()
    with trusted.channel.wrap(taken, server_side=True, expect=like_me()) as sock:
        said = sock.makefile("rb").read(most)
        sock.sendall(said[::-1])
        return said


@app.entry
def tell(port: int, data: bytes, product: int) -> bytes:
    expect = (
        like_me() if not product else Expectation(platforms=["sim"], signer=["sha256:" + "0" * 64], product_id=product)
    )
    with trusted.channel.wrap(socket.create_connection(("127.0.0.1", port)), expect=expect) as sock:
        sock.sendall(data)
        return sock.makefile("rb").read()


@pytest.fixture
def in_this_process():
    EnclaveManager.configure(EnclaveManagerOptions(loader=FakeEnclaveLoader(app)))
    yield
    EnclaveManager.configure(EnclaveManagerOptions())


@pytest.mark.usefixtures("in_this_process")
def test_two_loaded_enclaves_speak_and_one_that_is_not_expected_is_an_error_of_the_call():
    manager = EnclaveManager.instance()
    with (
        manager.load_enclave(EnclaveLoadConfig(name="one")) as one,
        manager.load_enclave(EnclaveLoadConfig(name="two")) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        port = one.call(listen)
        told = pool.submit(one.call, take, 5)
        assert two.call(tell, port, b"hello", 0) == b"olleh"
        assert told.result(60) == b"hello"
        port = one.call(listen)
        told = pool.submit(one.call, take, 5)
        with pytest.raises(Exception, match="signer") as caught:
            two.call(tell, port, b"hello", 7)
        assert "ExpectationError" in type(caught.value).__name__ or "ExpectationError" in str(caught.value)
        with pytest.raises(Exception, match="does not accept"):
            told.result(60)


PROGRAM = """
import socket
import adyton.trusted as trusted
from adyton import Expectation

enclave = trusted.Enclave("pair")


def like_me(debug: bool) -> Expectation:
    return Expectation(platforms=["sim"], measurement=[trusted.channel.own_identity().measurement], debug=debug)


class Listener:
    sock = None


@enclave.entry
def listen() -> int:
    Listener.sock = socket.create_server(("127.0.0.1", 0))
    return Listener.sock.getsockname()[1]


@enclave.entry
def take() -> bytes:
    taken, _ = Listener.sock.accept()
    with trusted.channel.wrap(taken, server_side=True, expect=like_me(True)) as sock:
        said = sock.makefile("rb").read()
        sock.sendall(said[::-1])
        return said[:100]


@enclave.entry
def tell(port: int, data: bytes, debug: bool) -> bytes:
    with trusted.channel.wrap(socket.create_connection(("127.0.0.1", port)), expect=like_me(debug)) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return sock.makefile("rb").read()
"""


@pytest.mark.sandbox
def test_two_real_enclaves_speak_and_a_changed_one_is_refused(tmp_path):
    import adyton

    (tmp_path / "pair.py").write_text(PROGRAM)
    (tmp_path / "changed.py").write_text(PROGRAM + "\n# changed\n")
    allowed = {"allow_net": ["127.0.0.1"], "allow_listen": ["127.0.0.1:0"]}
    with (
        adyton.load(tmp_path / "pair.py", **allowed) as one,
        adyton.load(tmp_path / "pair.py", **allowed) as two,
        adyton.load(tmp_path / "changed.py", **allowed) as changed,
        ThreadPoolExecutor(1) as pool,
    ):
        port = one.call("listen")
        data = bytes(range(256)) * 8192
        taken = pool.submit(one.call, "take")
        assert two.call("tell", port, data, True) == data[::-1]
        assert taken.result(60) == data[:100]
        taken = pool.submit(one.call, "take")
        with pytest.raises(Exception, match="measurement: expected"):
            changed.call("tell", port, SECRET, True)
        with pytest.raises(Exception, match="does not accept"):
            taken.result(60)
        taken = pool.submit(one.call, "take")
        with pytest.raises(Exception, match="debug"):
            two.call("tell", port, SECRET, False)
        with pytest.raises(Exception, match="does not accept"):
            taken.result(60)
