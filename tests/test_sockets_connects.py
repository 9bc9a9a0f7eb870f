"""Connecting with a stream socket of an enclave: without waiting, in vain, again, and what is said before it."""

import socket

import pytest
from enclave_sockets import EVERYWHERE, echo, enclave, server

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    with enclave(tmp_path_factory.mktemp("sockets"), **EVERYWHERE) as found:
        yield found


def test_a_non_blocking_connect_looks_like_one(at_work):
    with server(echo) as port:
        code = """
            sock = socket.socket()
            sock.setblocking(False)
            first = errno.errorcode[sock.connect_ex(("127.0.0.1", port))]
            select.select([], [sock], [])
            result = [first, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), sock.getpeername()[1]]
            sock.send(b"x")
            select.select([sock], [], [])
            result.append(sock.recv(10))
        """
        assert at_work.run(code, port=port) == ["EINPROGRESS", 0, port, b"x"]


def test_a_non_blocking_connect_that_fails_looks_like_one(at_work):
    """Who is woken in the very microsecond in which the kernel shows it may see the second half a moment later: see standin.thin."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        code = """
            sock = socket.socket()
            sock.setblocking(False)
            first = errno.errorcode[sock.connect_ex(("127.0.0.1", port))]
            poller = select.poll()
            poller.register(sock, select.POLLOUT)
            events = 0
            while not events & select.POLLOUT:
                events |= poller.poll()[0][1]
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            result = [first, bool(events & select.POLLOUT), bool(events & select.POLLERR), errno.errorcode[code]]
            result.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        """
        found = at_work.run(code, port=closed.getsockname()[1])
    assert found == ["EINPROGRESS", True, True, "ECONNREFUSED", 0]


def test_a_blocking_connect_that_failed_leaves_a_socket_that_can_be_written_to_at_once(at_work):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        code = """
            result = 0
            for _ in range(50):
                with socket.socket() as sock:
                    sock.connect_ex(("127.0.0.1", port))
                    result += len(select.select([], [sock], [], 0)[1])
        """
        assert at_work.run(code, port=closed.getsockname()[1]) == 50


def test_a_socket_whose_connect_has_failed_may_connect_again(at_work):
    """As on Linux: the next connect tells of the failure, or of ECONNABORTED if SO_ERROR has, and the one after that is another attempt."""
    with server(echo) as port, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        code = """
            with socket.create_server(("127.0.0.1", 0)) as other:
                own = other.getsockname()
            result = []
            for asked in (False, True):
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", 7, 0))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
                sock.bind(own)
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", refusing))
                select.select([], [sock], [])
                if asked:
                    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                result.append(errno.errorcode[sock.connect_ex(("127.0.0.1", port))])
                result.append(errno.errorcode[sock.connect_ex(("127.0.0.1", port))])
                select.select([], [sock], [])
                result += [sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), sock.getpeername()[1], sock.getsockname() == own]
                result.append(struct.unpack("qq", sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))[0])
                result += [sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), sock.get_inheritable(), os.get_blocking(sock.fileno())]
                sock.send(b"x")
                select.select([sock], [], [])
                result.append(sock.recv(10))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
        """
        connected = [0, port, True, 7, 100_000, False, False, b"x"]
        first, second = ["ECONNREFUSED", "EINPROGRESS"], ["ECONNABORTED", "EINPROGRESS"]
        assert at_work.run(code, port=port, refusing=closed.getsockname()[1]) == first + connected + second + connected
        code = """
            with socket.create_server(("127.0.0.1", 0)) as other:
                own = other.getsockname()
            sock = socket.socket()
            sock.bind(own)
            result = [errno.errorcode[sock.connect_ex(("127.0.0.1", refusing))], sock.connect_ex(("127.0.0.1", port))]
            result += [sock.getsockname() == own, errno.errorcode[sock.connect_ex(("127.0.0.1", port))]]
        """
        found = at_work.run(code, port=port, refusing=closed.getsockname()[1])
        assert found == ["ECONNREFUSED", 0, True, "EISCONN"]


def test_what_is_written_before_connect_goes_nowhere(at_work):
    with server(echo) as port:
        code = """
            sock = socket.socket()
            sock.send(b"early")
            for _ in range(1000):
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                try:
                    sock.send(b"early")
                except BrokenPipeError:
                    result = ["EPIPE", sock.recv(2)]
                    break
            sock.connect(("127.0.0.1", port))
            sock.send(b"x")
            result.append(sock.recv(10))
            sock.close()
            with socket.socket() as sock:
                sock.send(b"early")
                sock.connect(("127.0.0.1", port))
                sock.send(b"y")
                result.append(sock.recv(10))
        """
        assert at_work.run(code, port=port) == ["EPIPE", b"", b"x", b"y"]


def test_who_goes_on_writing_before_connect_is_told_the_same_each_time(at_work):
    """What is written while what was written before is thrown away must not look like a reset."""
    code = """
        found = set()
        for _ in range(200):
            with socket.socket() as sock:
                try:
                    while True:
                        sock.send(b"early")
                except OSError as error:
                    found.add(errno.errorcode[error.errno])
        result = sorted(found)
    """
    assert at_work.run(code) == ["EPIPE"]


def test_a_socket_whose_connect_has_failed_may_listen(at_work):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        code = """
            sock = socket.socket()
            sock.setblocking(False)
            result = []
            for _ in range(2):
                result.append(errno.errorcode[sock.connect_ex(("127.0.0.1", refusing))])
                select.select([], [sock], [])
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            client = socket.create_connection(sock.getsockname())
            select.select([sock], [], [])
            accepted, peer = sock.accept()
            result.append(peer == client.getsockname())
            for each in (sock, client, accepted):
                each.close()
        """
        found = at_work.run(code, refusing=closed.getsockname()[1])
    assert found == ["EINPROGRESS", "ECONNREFUSED", True]


def test_a_connect_under_way_is_not_writable_and_may_time_out(tmp_path):
    """To an address from which no answer comes: a listener whose backlog is full."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            waiting.append(sock)
        with enclave(tmp_path, allow_net=["127.0.0.1"]) as at_work:
            code = """
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
                again = errno.errorcode[sock.connect_ex(("127.0.0.1", port))]
                result = [again, select.select([], [sock], [], 0.05)[1]]
                blocked = socket.socket()
                blocked.settimeout(0.05)
                try:
                    blocked.connect(("127.0.0.1", port))
                except TimeoutError:
                    result.append("timeout")
                late = socket.socket()
                late.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 100)
                try:
                    late.connect(("127.0.0.1", port))
                except OSError as error:
                    result.append(errno.errorcode[error.errno])
            """
            assert at_work.run(code, port=port) == ["EALREADY", [], "timeout", "ETIMEDOUT"]
        for each in waiting:
            each.close()
