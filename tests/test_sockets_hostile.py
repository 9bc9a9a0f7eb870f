"""Sockets between parties that wish one another ill: a client that lies, and a program that attacks its supervisor."""

import random
import select
import textwrap
import threading

import pytest
from enclave_sockets import EVERYWHERE, PATIENCE, echo, enclave, server
from hostile import PROGRAM, Ward

from adyton.hostcall import abi
from adyton.hostcall import sockets as net

pytestmark = pytest.mark.sandbox

HERE = net.Endpoint("127.0.0.1", 1234)
THERE = net.Endpoint("127.0.0.1", 80)
THERE6 = net.Endpoint("::1", 80)


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    made = Ward(tmp_path_factory.mktemp("ward"), PROGRAM)
    yield made
    made.close()


def honest(request):
    match request:
        case net.Connect(_, _, peer):
            return net.Connected(HERE, peer)
        case net.Bind() | net.Listen() | net.Reach():
            return net.Bound(HERE)
        case net.Resolve():
            return net.Addresses([net.Found("127.0.0.1", "127.0.0.1")])
        case net.GetOption():
            return net.OptionValue([1])
        case _:
            return abi.Failed("EACCES")


CONNECT = "socket.create_connection(('127.0.0.1', 80))"
BIND = "socket.socket().bind(('127.0.0.1', 0))"
SENDTO = "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
OPTION = "socket.socket().getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)"
LINGER = "socket.socket().getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)"

LIES = {
    "another request's result": (CONNECT, net.Bound(HERE)),
    "of another family": (CONNECT, net.Connected(net.Endpoint("::1", 1), net.Endpoint("::1", 2))),
    "no address": (CONNECT, net.Connected(net.Endpoint("localhost", 1), net.Endpoint("127.0.0.1", 2))),
    "a port out of range": (CONNECT, net.encode(["Connected", ["127.0.0.1", 70000], ["127.0.0.1", 1]])),
    "an unknown errno": (CONNECT, abi.Failed("EHWPOISON")),
    "an errno of files": (CONNECT, abi.Failed("ENOTDIR")),
    "no MessagePack": (CONNECT, b"\xc1"),
    "nothing": (CONNECT, b""),
    "much": (CONNECT, bytes(1 << 20)),
    "a bound socket of another family": (BIND, net.Bound(net.Endpoint("::", 1))),
    "addresses for a bound socket": (BIND, net.Addresses([])),
    "a connection for a datagram": (SENDTO, net.Connected(HERE, THERE)),
    "two values for one": (OPTION, net.OptionValue([1, 2])),
    "no value": (OPTION, net.encode(["OptionValue", []])),
    "a value out of range": (OPTION, net.encode(["OptionValue", [1 << 40]])),
    "one value for two": (LINGER, net.OptionValue([1])),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_an_error_in_the_enclave(ward, lie):
    code, answer = LIES[lie]
    with ward.enclave(lambda request: answer if isinstance(request, net.Request) else abi.Failed("EACCES")) as client:
        assert client.load().ok
        assert client.enter("attempt", code) == "OSError: [Errno 5] Input/output error"
        assert client.enter("attempt", "1") == "1"


@pytest.mark.parametrize(
    "answer",
    [
        net.Bound(HERE),
        net.Addresses([net.Found("localhost", None)]),
        net.Addresses([net.Found("127.0.0.1", "::1")]),
        abi.Failed("ENOTDIR"),
        b"x",
    ],
)
def test_a_lie_about_a_name_is_a_failure_to_resolve_it(ward, answer):
    with ward.enclave(lambda request: answer if isinstance(request, net.Resolve) else abi.Failed("EACCES")) as client:
        assert client.load().ok
        assert "gaierror" in client.enter("attempt", "socket.getaddrinfo('db.test', 80)")


def connected(client):
    assert client.load().ok
    client.enter("execute", "import builtins; builtins.sock = socket.create_connection(('127.0.0.1', 80))")
    return next(request.socket for request in client.asked if isinstance(request, net.Connect))


def test_more_than_there_is_credit_for_breaks_the_connection_and_nothing_else(ward):
    with ward.enclave(honest) as client:
        number = connected(client)
        for _ in range(3 * net.WINDOW // net.CHUNK):
            client.tell(net.Received(number, bytes(net.CHUNK)))
        assert client.enter("attempt", "len(sock.recv(10))") == "10"
        code = """
got = 10
try:
    while data := sock.recv(1 << 20):
        got += len(data)
    result = "end"
except ConnectionResetError:
    result = "reset"
result = [got, result]
"""
        got, end = client.enter("execute", code)
        assert end == "reset"
        assert net.WINDOW <= got < 2 * net.WINDOW  # what the guest's kernel had taken made room for more
        assert client.enter("attempt", "1") == "1"


def test_a_client_that_is_always_blocked_gets_a_bounded_window(ward):
    with ward.enclave(honest) as client:
        number = connected(client)
        for _ in range(100):
            client.tell(net.Blocked(number))
        assert client.enter("attempt", "1") == "1"
        given = [each.size for each in client.told if isinstance(each, net.Credit)]
        assert net.FIRST + sum(given) == net.MAX_WINDOW
        left = net.MAX_WINDOW
        while left:
            client.tell(net.Received(number, bytes(min(left, net.CHUNK))))
            left -= min(left, net.CHUNK)
        code = "result = 0\nwhile result < size: result += len(sock.recv(1 << 20))"
        assert client.enter("execute", f"size = {net.MAX_WINDOW}\n{code}") == net.MAX_WINDOW


OUT_OF_PLACE = [
    lambda number: net.ReceivedFrom(number, THERE, b"x"),
    lambda number: net.Incoming(number, 77, HERE, THERE),
    lambda number: net.Broken(number, "EHWPOISON"),
    lambda number: net.Begun(number, HERE),
]


@pytest.mark.parametrize("message", OUT_OF_PLACE)
def test_a_message_out_of_place_breaks_the_connection_and_nothing_else(ward, message):
    with ward.enclave(honest) as client:
        number = connected(client)
        client.enter("execute", "sock.sendall(b'x')")
        client.tell(message(number))
        assert "ConnectionResetError" in client.enter("attempt", "sock.recv(2)")
        assert "Errno" not in client.enter("attempt", CONNECT)


@pytest.mark.parametrize("message", [b"", b"\xc1", net.encode(["Received", 0, b"x"]), net.encode(["Send", 1, b"x"])])
def test_what_is_no_message_ends_the_enclave_with_a_reason(ward, message):
    with ward.enclave(honest) as client:
        connected(client)
        client.tell(message)
        assert "malformed message about a socket" in client.wait_for_end()


def test_messages_about_sockets_that_are_not_there_are_dropped(ward):
    with ward.enclave(honest) as client:
        connected(client)
        for number in (99, 1 << 40):
            for message in (net.Received(number, b"x"), net.EndOfStream(number), net.Broken(number, "EPIPE")):
                client.tell(message)
        assert client.enter("attempt", "1") == "1"


def test_a_connection_under_a_number_that_was_not_given_is_refused(ward):
    with ward.enclave(honest) as client:
        assert client.load().ok
        client.enter("execute", "import builtins; builtins.listener = socket.create_server(('127.0.0.1', 0))")
        listening = next(request for request in client.asked if isinstance(request, net.Listen))
        client.tell(net.Incoming(listening.socket, listening.accepts[0], HERE, THERE))
        client.tell(net.Incoming(listening.socket, listening.accepts[0], HERE, THERE))  # given once
        assert "OSError" in client.enter("attempt", "[listener.accept() for _ in range(2)]")
        assert client.enter("attempt", "1") == "1"


@pytest.mark.parametrize("seed", range(8))
def test_random_messages_end_nothing_but_connections(ward, seed):
    chance = random.Random(seed)

    def message():
        number = chance.randrange(1, 40)
        return chance.choice(
            [
                net.Received(number, chance.randbytes(chance.choice([1, 100, net.CHUNK]))),
                net.ReceivedFrom(
                    number,
                    chance.choice([HERE, THERE6]),
                    chance.randbytes(chance.randrange(100)),
                    chance.choice(
                        [None, net.Ancillary("::1"), net.Ancillary("nowhere", 3), net.Ancillary("127.0.0.1", 3, 4)]
                    ),
                ),
                net.EndOfStream(number),
                net.Broken(number, chance.choice(["ECONNRESET", "nonsense", ""])),
                net.Credit(number, chance.randrange(1, 1 << 31)),
                net.Incoming(number, chance.randrange(1, 40), HERE, chance.choice([THERE, THERE6])),
            ]
        )

    def answer(request):
        if isinstance(request, net.Request) and chance.random() < 0.3:
            return chance.choice([abi.Failed("ECONNREFUSED"), net.Bound(HERE), net.Connected(HERE, THERE), b"\x90"])
        return honest(request)

    code = """
import select
kept = []
for step in range(12):
    try:
        kind = step % 4
        if kind == 0:
            sock = socket.socket(); sock.setblocking(False); sock.connect_ex(("127.0.0.1", 80))
        elif kind == 1:
            sock = socket.socket(); sock.bind(("127.0.0.1", 0)); sock.listen(3); sock.setblocking(False)
        elif kind == 2:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sock.sendto(b"x", ("127.0.0.1", 9))
        else:
            sock = kept[step // 4]
        kept.append(sock)
        sock.setblocking(False)
        for action in (
            sock.accept,
            lambda: sock.setsockopt(0, 8, 1),
            lambda: sock.recvfrom(9999),
            lambda: sock.recvmsg(9999, 99),
            lambda: sock.send(b"y"),
            lambda: sock.sendmsg([b"z"], [(0, 2, b"\\5\\0\\0\\0")], 0, ("127.0.0.1", 9)),
            sock.getpeername,
        ):
            try:
                action()
            except OSError:
                pass
    except OSError:
        pass
for sock in kept[::2]:
    sock.close()
"""
    with ward.enclave(answer) as client:
        assert client.load().ok
        for _ in range(6):
            under_way = client.start("execute", code)
            for _ in range(30):
                client.tell(message())
            client.result(under_way)
        assert client.enter("attempt", "1") == "1"


def test_a_client_that_never_answers_holds_up_nobody_else(ward):
    with ward.enclave(lambda request: None if isinstance(request, net.Connect) else honest(request)) as client:
        assert client.load().ok
        code = """
signal.signal(signal.SIGUSR2, lambda *_: None)
class Enough(Exception): pass
def stop(*_): raise Enough
before = signal.signal(signal.SIGALRM, stop)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    socket.create_connection(("127.0.0.1", 80))
except Enough:
    os._exit(7)
os._exit(1)
"""
        forked = f"""
pid = os.fork()
if pid == 0:
    exec({code!r})
result = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
        assert client.enter("execute", forked) == 7


# -- the program ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    with enclave(tmp_path_factory.mktemp("hostile"), **EVERYWHERE) as found:
        yield found


def test_garbage_in_every_argument_of_every_emulated_call(at_work):
    code = """
        import ctypes, itertools, random, mmap
        libc = ctypes.CDLL(None, use_errno=True)
        calls = {"socket": 3, "connect": 3, "bind": 3, "listen": 2, "getsockname": 3, "getpeername": 3, "getsockopt": 5,
                 "setsockopt": 5, "shutdown": 2, "sendto": 6, "recvfrom": 6, "accept4": 4, "accept": 3, "sendmsg": 3, "recvmsg": 3,
                 "sendmmsg": 4, "recvmmsg": 5}
        chance = random.Random(seed)
        stream, datagram, unix = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)
        listener = socket.create_server(("127.0.0.1", 0))
        pair = socket.socketpair()
        for each in (listener, stream, datagram, unix, *pair):
            each.setblocking(False)
        read_only = mmap.mmap(-1, 4096, prot=mmap.PROT_READ)
        writable = ctypes.create_string_buffer(bytes(chance.randbytes(256)), 256)
        short = (ctypes.c_int * 64)(16)
        descriptors = [-1, 0, 1, 9999, 1 << 31, *(each.fileno() for each in (stream, datagram, unix, listener, pair[0]))]
        values = [0, 1, 2, 16, 28, -1, 1 << 31, (1 << 63) - 1, 1 << 62, 4096, ctypes.addressof(writable), ctypes.addressof(short), 0xdead000]
        done = set()
        for name, count in calls.items():
            function = getattr(libc, name)
            for _ in range(60):
                first = chance.choice(descriptors if name != "socket" else [1, 2, 10, 16, -1])
                arguments = [ctypes.c_long(first), *(ctypes.c_long(chance.choice(values)) for _ in range(count - 1))]
                ctypes.set_errno(0)
                got = function(*arguments)
                if got < 0:
                    done.add(errno.errorcode.get(ctypes.get_errno(), ctypes.get_errno()))
                elif name == "socket":
                    os.close(got)
        result = sorted(map(str, done))
    """
    for seed in range(3):
        found = at_work.run(code, seed=seed)
        assert {"EBADF", "EFAULT", "EINVAL"} <= set(found)
        assert not set(found) & {"EIO", "ENOSYS"}
    with server(echo) as port:
        code = "s = socket.create_connection(('127.0.0.1', port)); s.sendall(b'x'); result = s.recv(1)"
        assert at_work.run(code, port=port) == b"x"


def test_an_address_that_changes_while_it_is_read_leads_nowhere_else(tmp_path):
    with server(echo) as port, enclave(tmp_path, allow_net=[f"127.0.0.1:{port}"]) as at_work:
        code = """
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            good = struct.pack("=H2s4s8x", 2, port.to_bytes(2, "big"), socket.inet_aton("127.0.0.1"))
            bad = struct.pack("=H2s4s8x", 2, (9).to_bytes(2, "big"), socket.inet_aton("192.0.2.1"))
            memory = ctypes.create_string_buffer(good, 16)
            stop = False
            def change():
                while not stop:
                    memory[:16] = bad
                    memory[:16] = good
            threading.Thread(target=change).start()
            outcomes = set()
            try:
                for _ in range(200):
                    with socket.socket() as sock:
                        if libc.connect(sock.fileno(), memory, 16) == 0:
                            outcomes.add(sock.getpeername()[1])
                        else:
                            outcomes.add(errno.errorcode[ctypes.get_errno()])
            finally:
                stop = True
            result = sorted(map(str, outcomes))
        """
        found = set(at_work.run(code, port=port))
        assert found <= {str(port), "EACCES", "EAFNOSUPPORT"}
        assert str(port) in found


def test_an_argument_in_a_file_that_the_supervisor_serves_cannot_be_read_unless_it_was_before(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    with enclave(tmp_path, allow_read=[str(path)]) as at_work:
        code = """
            import ctypes, mmap
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mmap.restype = ctypes.c_void_p
            file = os.open(path, os.O_RDONLY)
            address = libc.mmap(None, 1 << 20, mmap.PROT_READ, mmap.MAP_SHARED, file, ctypes.c_long(0)) + (1 << 19)
            sock = socket.socket()
            result = []
            for _ in range(2):
                libc.connect(sock.fileno(), ctypes.c_void_p(address), 16)
                result.append(errno.errorcode[ctypes.get_errno()])
                assert ctypes.string_at(address, 1) == bytes(1)
        """
        assert at_work.run(code, path=str(path)) == ["EFAULT", "EAFNOSUPPORT"]


def test_a_file_in_place_of_a_socket(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    with enclave(tmp_path, allow_write=[str(tmp_path)]) as at_work:
        code = """
            result = []
            with open(path, "r+b", buffering=0) as file:
                file.write(b"changed")
                for action in (lambda sock: sock.getsockname(), lambda sock: sock.listen(), lambda sock: sock.connect(("127.0.0.1", 1))):
                    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, os.dup(socket.socketpair()[0].detach()))
                    os.dup2(file.fileno(), sock.fileno())
                    for _ in range(30):
                        try:
                            action(sock)
                        except OSError as error:
                            result.append(errno.errorcode[error.errno])
                    sock.detach()
        """
        assert at_work.run(code, path=str(tmp_path / "file")) == ["ENOTSOCK"] * 90
    assert (tmp_path / "file").read_bytes() == b"changed"


def test_descriptors_that_are_closed_and_replaced_in_the_middle(at_work):
    with server(echo) as port:
        code = """
            stop = False
            sock = socket.create_connection(("127.0.0.1", port))
            spare = [socket.socket(), socket.socketpair()[0], socket.create_connection(("127.0.0.1", port))]
            number = sock.fileno()
            def replace():
                while not stop:
                    for each in spare:
                        os.dup2(each.fileno(), number)
            thread = threading.Thread(target=replace)
            thread.start()
            for _ in range(300):
                for action in (
                    sock.getsockname,
                    sock.getpeername,
                    lambda: sock.getsockopt(1, 3),
                    lambda: sock.setsockopt(6, 1, 1),
                    lambda: sock.listen(1),
                    lambda: sock.shutdown(5),
                ):
                    try:
                        action()
                    except OSError:
                        pass
            stop = True
            thread.join()
            result = "alive"
        """
        assert at_work.run(code, port=port) == "alive"


def test_a_server_of_many_sockets_comes_to_an_end_of_them_and_not_to_its_own(at_work):
    code = """
        import resource
        kept, code = [], 0
        try:
            for _ in range(5000):
                kept.append(socket.socket())
        except OSError as error:
            code = error.errno
        result = [errno.errorcode[code], len(kept) > 200]
    """
    assert at_work.run(code) == ["EMFILE", True]
    with server(echo) as port:
        assert at_work.run("result = socket.create_connection(('127.0.0.1', port)).fileno() > 0", port=port)


# -- backpressure -----------------------------------------------------------------------------------------------------------

BOUND = 4 << 20  # a window, the buffers of two pairs of sockets, and what is on its way


def test_a_peer_that_reads_nothing_costs_a_bounded_amount(at_work):
    done = threading.Event()

    def serve(connection):
        done.wait(PATIENCE)

    with server(serve) as port:
        code = """
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            sock.connect(("127.0.0.1", port))
            sock.setblocking(False)
            sent, piece = 0, bytes(1 << 16)
            while select.select([], [sock], [], 0.3)[1]:
                try:
                    sent += sock.send(piece)
                except BlockingIOError:
                    pass
            result = sent
        """
        sent = at_work.run(code, port=port)
        done.set()
    assert net.WINDOW <= sent <= BOUND + (6 << 20)  # the system's own buffers of the peer, which grow by themselves


def test_a_program_that_reads_nothing_costs_a_bounded_amount(at_work):
    counted = []
    done = threading.Event()

    def serve(connection):
        connection.setblocking(False)
        sent = 0
        while select.select([], [connection], [], 0.5)[1]:
            try:
                sent += connection.send(bytes(1 << 16))
            except BlockingIOError:
                pass
        counted.append(sent)
        connection.settimeout(PATIENCE)
        connection.sendall(b"end")
        done.set()

    with server(serve) as port:
        code = """
            import builtins
            builtins.sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            sock.connect(("127.0.0.1", port))
        """
        at_work.run(code, port=port)
        code = """
            got = 0
            while True:
                data = sock.recv(1 << 20)
                got += len(data)
                if data.endswith(b"end"):
                    break
            result = got
        """
        reading = at_work.start("while not os.path.exists('/dev/shm/go'): time.sleep(0.01)\n" + textwrap.dedent(code))
        for _ in range(6000):
            if counted:
                break
            threading.Event().wait(0.01)
        at_work.run("open('/dev/shm/go', 'w').close()")
        assert done.wait(PATIENCE)
        assert reading.result(PATIENCE) == counted[0] + 3
    assert net.WINDOW <= counted[0] <= BOUND + (6 << 20)
