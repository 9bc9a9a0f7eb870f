"""Stream sockets in an enclave are the client's: connections, servers, errors, options, names, readiness."""

import errno
import socket
import struct
import textwrap
import threading
import time

import pytest
from enclave_sockets import EVERYWHERE, PATIENCE, echo, enclave, server

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    with enclave(tmp_path_factory.mktemp("sockets"), **EVERYWHERE) as found:
        yield found


FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


@pytest.mark.parametrize(("family", "host"), FAMILIES, ids=["inet", "inet6"])
def test_a_connection_carries_bytes_both_ways_and_has_the_clients_names(at_work, family, host):
    seen = []

    def serve(connection):
        seen.append(connection.getpeername())
        echo(connection)

    with server(serve, family) as port:
        code = """
            with socket.create_connection((host, port)) as sock:
                sock.sendall(b"x" * 100_000)
                got = b""
                while len(got) < 100_000:
                    got += sock.recv(1 << 16)
                result = [got == b"x" * 100_000, sock.getpeername(), sock.getsockname(), sock.family, sock.type]
        """
        same, peer, own, kind, sort = at_work.run(code, host=host, port=port)
    assert same
    assert peer[:2] == [host, port]
    assert own == list(seen[0])
    assert (kind, sort) == (family, socket.SOCK_STREAM)


def test_half_shutdown_each_way(at_work):
    got = []
    done = threading.Event()

    def serve(connection):
        connection.sendall(b"first")
        connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(1000):
            got.append(data)
        done.set()

    with server(serve) as port:
        code = """
            sock = socket.create_connection(("127.0.0.1", port))
            first = sock.recv(100), sock.recv(100)  # its end, while we still can send
            sock.sendall(b"after its end")
            sock.shutdown(socket.SHUT_WR)
            try:
                sock.send(b"x")
            except BrokenPipeError:
                broken = True
            result = [*first, broken]
            sock.close()
        """
        assert at_work.run(code, port=port) == [b"first", b"", True]
        assert done.wait(PATIENCE)
    assert b"".join(got) == b"after its end"


def test_true_errors(at_work):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert at_work.fails("socket.create_connection(('127.0.0.1', port))", port=port) == "ECONNREFUSED"
    assert at_work.fails("socket.socket().getpeername()") == "ENOTCONN"
    assert at_work.fails("socket.socket().shutdown(2)") == "ENOTCONN"
    assert at_work.fails("socket.socket().recv(1)") == "ENOTCONN"
    assert at_work.fails("socket.socket().recvfrom(2)") == "ENOTCONN"
    assert at_work.fails("socket.socket().accept()") == "EINVAL"
    assert at_work.fails("socket.socket().setsockopt(1, 9999, 1)") == "ENOPROTOOPT"
    assert at_work.fails("socket.socket(socket.AF_INET, socket.SOCK_RAW)") == "EPERM"
    assert at_work.fails("socket.socket(socket.AF_NETLINK)") == "ESOCKTNOSUPPORT"
    assert at_work.fails("socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)") == "EPROTONOSUPPORT"
    assert at_work.fails("socket.socket(socket.AF_INET, socket.SOCK_SEQPACKET)") == "ESOCKTNOSUPPORT"
    assert at_work.fails("s = socket.create_server(('127.0.0.1', 0)); s.connect(('127.0.0.1', 1))") == "EISCONN"
    assert at_work.fails("s = socket.socketpair()[0]; s.send(b'x', socket.MSG_OOB)") == "ENOTSUP"


def test_an_address_in_use(at_work):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert at_work.fails("socket.socket().bind(('127.0.0.1', port))", port=port) == "EADDRINUSE"


def test_a_reset(at_work):
    def serve(connection):
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    with server(serve) as port:
        code = """
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(b"x")
            try:
                result = sock.recv(10)
            except ConnectionResetError:
                result = "reset"
        """
        assert at_work.run(code, port=port) == "reset"


def test_what_came_before_a_reset_is_read_first(at_work):
    def serve(connection):
        connection.sendall(b"last words")
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    with server(serve) as port:
        code = """
            sock = socket.create_connection(("127.0.0.1", port))
            select.select([sock], [], [])
            sock.sendall(b"x")
            poller = select.poll()
            poller.register(sock, select.POLLRDHUP)
            poller.poll()
            result = [sock.recv(100)]
            try:
                sock.recv(100)
            except ConnectionResetError:
                result.append("reset")
        """
        assert at_work.run(code, port=port) == [b"last words", "reset"]


def test_a_program_that_leaves_bytes_unread_resets_its_peer(at_work):
    outcome = []
    done = threading.Event()

    def serve(connection):
        connection.sendall(b"unwanted")
        try:
            outcome.append(connection.recv(100))
        except ConnectionResetError:
            outcome.append("reset")
        done.set()

    with server(serve) as port:
        code = """
            sock = socket.create_connection(("127.0.0.1", port))
            select.select([sock], [], [])
            sock.close()
        """
        at_work.run(code, port=port)
        assert done.wait(PATIENCE)
    assert outcome == ["reset"]


@pytest.mark.parametrize(("family", "host"), FAMILIES, ids=["inet", "inet6"])
def test_a_server_in_the_enclave_listens_on_the_clients_port(at_work, family, host):
    code = """
        listener = socket.create_server((host, 0), family=family)
        ports.append(listener.getsockname()[1])
        connection, peer = listener.accept()
        with connection, listener:
            connection.sendall(connection.recv(100).upper())
            result = [peer, connection.getpeername(), connection.getsockname()]
    """
    at_work.run("import builtins; builtins.ports = []")
    serving = at_work.start(code, host=host, family=int(family))
    port = at_work.run("while not ports: time.sleep(0.001)\nresult = ports[0]")
    with socket.create_connection((host, port)) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"HELLO"
        own = list(sock.getsockname())
        peer, same, local = serving.result(PATIENCE)
    assert peer == same == own
    assert local[:2] == [host, port]


def test_many_connections_wait_to_be_accepted(at_work):
    code = """
        import builtins
        builtins.listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        result = builtins.listener.getsockname()[1]
    """
    port = at_work.run(code)
    clients = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(30)]
    for number, each in enumerate(clients):
        each.sendall(b"%d" % number)
    code = """
        result = []
        for _ in range(30):
            connection, _ = listener.accept()
            data = connection.recv(10)
            connection.sendall(data)
            connection.close()
            result.append(int(data))
        listener.close()
    """
    assert sorted(at_work.run(code)) == list(range(30))
    assert [int(each.recv(10)) for each in clients] == list(range(30))
    for each in clients:
        each.close()


def test_a_closed_listener_refuses(at_work):
    port = at_work.run("s = socket.create_server(('127.0.0.1', 0)); result = s.getsockname()[1]; s.close()")
    deadline = time.monotonic() + PATIENCE
    while True:  # the client hears of it a moment later
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED:
                break
        assert time.monotonic() < deadline, "it listens on"
        threading.Event().wait(0.005)


def test_options_are_those_of_the_clients_socket(at_work):
    with socket.socket() as sock:
        default = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
        set_to = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    with server(echo) as port:
        code = """
            sock = socket.socket()
            O = socket.SOL_SOCKET
            result = [sock.getsockopt(O, socket.SO_RCVBUF)]
            sock.setsockopt(O, socket.SO_RCVBUF, 50_000)
            result.append(sock.getsockopt(O, socket.SO_RCVBUF))
            sock.connect(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(O, socket.SO_LINGER, struct.pack("ii", 1, 5))
            result += [
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
                list(struct.unpack("ii", sock.getsockopt(O, socket.SO_LINGER, 8))),
                sock.getsockopt(O, socket.SO_TYPE),
                sock.getsockopt(O, socket.SO_ERROR),
                sock.getsockopt(O, socket.SO_ACCEPTCONN),
                sock.getsockopt(O, socket.SO_DOMAIN),
            ]
            sock.setsockopt(O, socket.SO_RCVTIMEO, struct.pack("qq", 0, 1000))
            try:
                sock.recv(1)
            except BlockingIOError:
                result.append("timeout")
        """
        assert at_work.run(code, port=port) == [default, set_to, 1, [1, 5], 1, 0, 0, 2, "timeout"]


def test_timeouts_of_the_kernel_hold_for_what_is_emulated(at_work):
    code = """
        result = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            sock = socket.socket(socket.AF_INET, kind)
            sock.bind(("127.0.0.1", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", 0, 20_000))
            try:
                if kind == socket.SOCK_STREAM:
                    sock.listen()
                    sock.accept()
                else:
                    sock.recvfrom(10)
            except BlockingIOError:
                result.append("EAGAIN")
    """
    assert at_work.run(code) == ["EAGAIN", "EAGAIN"]


def test_listeners_are_ready_by_level_and_by_edge(at_work):
    code = """
        import builtins
        builtins.listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        result = listener.getsockname()[1]
    """
    port = at_work.run(code)
    code = """
        level, edge = select.epoll(), select.epoll()
        level.register(listener, select.EPOLLIN)
        edge.register(listener, select.EPOLLIN | select.EPOLLET)
        result = [len(level.poll()), len(level.poll(0)), len(edge.poll()), len(edge.poll(0))]
        connection, _ = listener.accept()
        result.append(len(level.poll(0)))
        try:
            listener.accept()
        except BlockingIOError:
            result.append("EAGAIN")
        result += [connection.recv(5), len(select.select([listener], [], [], 0)[0])]
        listener.close()
    """
    waiting = at_work.start(code)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"hello")
        assert waiting.result(PATIENCE) == [1, 1, 1, 0, 0, "EAGAIN", b"hello", 0]


def test_connections_are_ready_by_edge(at_work):
    with server(echo) as port:
        code = """
            sock = socket.create_connection(("127.0.0.1", port))
            edge = select.epoll()
            edge.register(sock, select.EPOLLIN | select.EPOLLET)
            result = []
            for _ in range(3):
                sock.sendall(b"x")
                result += [len(edge.poll()), len(edge.poll(0))]
        """
        assert at_work.run(code, port=port) == [1, 0] * 3


def test_signals_interrupt_what_waits_for_the_client(at_work):
    code = """
        hits = []
        before = signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
        class Enough(Exception): pass
        listener = socket.create_server(("127.0.0.1", 0))
        def stop(*_):
            hits.append(1)
            if len(hits) > 2:
                raise Enough
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        try:
            listener.accept()
        except Enough:
            result = len(hits)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    """
    forked = """
        pid = os.fork()
        if pid == 0:
            try:
                exec(program)
                os._exit(result)
            except BaseException:
                os._exit(99)
        result = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    """
    assert at_work.run(forked, program=textwrap.dedent(code)) == 3


def test_forked_processes_and_duplicates_share_a_socket(at_work):
    with server(echo) as port:
        code = """
            sock = socket.create_connection(("127.0.0.1", port))
            copy = os.dup(sock.fileno())
            pid = os.fork()
            if pid == 0:
                sock.sendall(b"child")
                name = sock.getpeername()[1]
                os._exit(name == port and 7)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            sock.close()
            other = socket.socket(fileno=copy)
            a, b = socket.socketpair()
            socket.send_fds(a, [b"x"], [other.fileno()])
            _, (passed,), _, _ = socket.recv_fds(b, 1, 1)
            last = socket.socket(fileno=passed)
            result = [status, other.recv(100), last.getpeername()[1]]
        """
        assert at_work.run(code, port=port) == [7, b"child", port]


def test_threads_share_sockets_and_each_has_its_own(at_work):
    with server(echo) as port:
        code = """
            from concurrent.futures import ThreadPoolExecutor
            def talk(number):
                with socket.create_connection(("127.0.0.1", port)) as sock:
                    for _ in range(5):
                        sock.sendall(b"%d" % number)
                        assert sock.recv(10) == b"%d" % number
                return number
            with ThreadPoolExecutor(8) as pool:
                result = list(pool.map(talk, range(40)))
        """
        assert at_work.run(code, port=port) == list(range(40))


def test_unix_sockets_are_the_enclaves_own(at_work):
    code = """
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("/tmp/of-mine")
        listener.listen()
        client = socket.socket(socket.AF_UNIX)
        client.connect("/tmp/of-mine")
        connection, peer = listener.accept()
        client.sendall(b"x")
        result = [connection.recv(1), peer, client.getpeername(), client.getsockopt(1, socket.SO_TYPE)]
        abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        abstract.bind(b"\\0mine")
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sender.bind(b"\\0other")
        sender.sendto(b"y", b"\\0mine")
        result += abstract.recvfrom(10)
        os.unlink("/tmp/of-mine")
    """
    assert at_work.run(code) == [b"x", "", "/tmp/of-mine", 1, b"y", b"\0other"]
    assert at_work.fails("socket.socket(socket.AF_UNIX).setsockopt(1, 25, b'lo')") == "EPERM"
    assert at_work.fails("socket.socket(socket.AF_UNIX).connect('/tmp/nothing')") == "ENOENT"


def test_one_byte_is_received_from_what_is_connected_only(at_work):
    """So Python's ssl finds out whether a socket is connected, and takes one that is not yet."""
    code = """
        import ssl
        with socket.create_server(("127.0.0.1", 0)) as listener:
            wrapped = ssl._create_unverified_context().wrap_socket(socket.socket(), do_handshake_on_connect=False)
            wrapped.connect(listener.getsockname())
            accepted = listener.accept()[0]
            accepted.sendall(b"abc")
            plain = socket.socket(fileno=wrapped.detach())
            result = [plain.recv(1).decode(), plain.recv(1).decode(), plain.recv(2).decode()]
            accepted.close()
            result.append(plain.recv(1).decode())
            plain.close()
        ends = socket.socketpair()
        ends[0].sendall(b"d")
        result.append(ends[1].recv(1).decode())
        for each in ends:
            each.close()
    """
    assert at_work.run(code) == ["a", "b", "c", "", "d"]


def test_a_send_to_an_address_waits_for_room_on_a_connection(at_work):
    """TCP heeds no address there; the call is the supervisor's all the same."""
    size = 16 << 20  # more than there is room for on the way
    done, got = threading.Event(), []

    def serve(connection):
        begun.wait(PATIENCE)
        while data := connection.recv(1 << 20):
            got.append(len(data))
        done.set()

    begun = threading.Event()
    with server(serve) as port:
        code = """
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setblocking(False)
            sent = 0
            try:
                while True:
                    sent += sock.sendto(bytes(1 << 17), ("127.0.0.1", port))
            except BlockingIOError:
                pass
            sock.setblocking(True)
            result = socket.kept = [sock, sent]
            result = sent
        """
        sent = at_work.run(code, port=port)
        assert sent < size
        waiting = at_work.start(
            """
            sock, result = socket.kept
            while result < size:
                result += sock.sendto(bytes(min(1 << 17, size - result)), sock.getpeername())
            sock.close()
            """,
            size=size,
        )
        begun.set()
        assert waiting.result(PATIENCE) == size
        assert done.wait(PATIENCE)
    assert sum(got) == size
