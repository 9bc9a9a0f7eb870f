"""Datagram sockets and names in an enclave."""

import contextlib
import errno
import socket
import threading

import pytest
from enclave_sockets import EVERYWHERE, PATIENCE, echo, enclave, server

pytestmark = [pytest.mark.sandbox, pytest.mark.usefixtures("on_the_server")]

NAMES = {"db.test": ["127.0.0.1", "::1"], "four.test": ["127.0.0.1"], "nowhere.test": []}


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    with enclave(tmp_path_factory.mktemp("datagrams"), **EVERYWHERE) as found:
        yield found


@pytest.fixture
def asked(monkeypatch):
    """The client's resolver knows NAMES; what it was asked for."""
    questions = []
    true = socket.getaddrinfo

    def look_up(host, port, *arguments, **options):
        if host not in NAMES and not str(host).endswith(".test"):
            return true(host, port, *arguments, **options)
        questions.append(host)
        if not NAMES.get(host):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port or 0))
            for each in NAMES[host]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return questions


@contextlib.contextmanager
def datagram_echo(family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        address = sock.getsockname()

        def serve():
            while True:
                data, peer = sock.recvfrom(1 << 16)
                if data == b"end":
                    return
                sock.sendto(data, peer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield address[1]
        with socket.socket(family, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", address)
        thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["inet", "inet6"]
)
def test_datagrams_keep_their_boundaries_and_have_their_senders(at_work, family, host):
    code = """
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sizes = [1, 0, 1000, 60_000, 3]
        for size in sizes:
            sock.sendto(b"x" * size, (host, port))
        got = [sock.recvfrom(1 << 16) for _ in sizes]
        result = [[len(data) for data, _ in got], [peer[:2] for _, peer in got], sock.getsockname()[1] > 0, sock.type]
    """
    with datagram_echo(family) as port:
        sizes, peers, bound, kind = at_work.run(code, family=int(family), host=host, port=port)
    assert sizes == [1, 0, 1000, 60_000, 3]
    assert peers == [[host, port]] * 5
    assert bound
    assert kind == socket.SOCK_DGRAM


def test_a_connected_datagram_socket_is_read_and_written_natively(at_work):
    code = """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("127.0.0.1", port))
        os.write(sock.fileno(), b"one")
        sock.sendmsg([b"two", b"!"])
        result = [os.read(sock.fileno(), 100), sock.recv(100), sock.getpeername(), sock.getsockname()[0]]
        sock.send(b"")
        result.append(sock.recv(10))
    """
    with datagram_echo() as port:
        assert at_work.run(code, port=port) == [b"one", b"two!", ["127.0.0.1", port], "127.0.0.1", b""]


def test_senders_are_told_whichever_way_datagrams_are_read(at_work):
    """recv reads without who is asked for senders; the sender of the next one is right all the same."""
    code = """
        a, b, taker = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3))
        for each in (a, b, taker):
            each.bind(("127.0.0.1", 0))
        there = taker.getsockname()
        result = []
        for number in range(12):
            (a if number % 2 else b).sendto(b"%d" % number * (number * 100 + 1), there)
        for number in range(12):
            peeked = taker.recvfrom(3, socket.MSG_PEEK)
            if number % 3:
                data, peer = taker.recvfrom(1 << 16)
                assert peeked[1] == peer
                result.append(peer == (a if number % 2 else b).getsockname() and data.startswith(b"%d" % number))
            else:
                result.append(taker.recv(1 << 16).startswith(b"%d" % number))
    """
    assert at_work.run(code) == [True] * 12


def test_senders_are_told_of_more_datagrams_than_the_kernel_keeps(at_work):
    code = """
        senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        taker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for each in (*senders, taker):
            each.bind(("127.0.0.1", 0))
        there = taker.getsockname()
        for number in range(90):
            senders[number % 3].sendto(b"%d" % number * (1 + number % 7 * 100), there)
        wrong = 0
        for number in range(90):
            if number % 5 == 4:
                taker.recv(1 << 16)
            else:
                data, peer = taker.recvfrom(1 << 16)
                wrong += peer != senders[number % 3].getsockname() or not data.startswith(b"%d" % number)
        result = wrong
    """
    assert at_work.run(code) == 0


def test_waiting_for_a_datagram(at_work):
    code = """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        try:
            sock.recvfrom(10, socket.MSG_DONTWAIT)
        except BlockingIOError:
            result = ["EAGAIN"]
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        threading.Timer(0.05, other.sendto, (b"late", sock.getsockname())).start()
        result.append(sock.recvfrom(10)[0])
        sock.settimeout(0.02)
        try:
            sock.recvfrom(10)
        except TimeoutError:
            result.append("timeout")
    """
    assert at_work.run(code) == ["EAGAIN", b"late", "timeout"]


def test_errors_of_datagram_sockets(at_work):
    new = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    assert at_work.fails(new + "s.sendto(bytes(65508), ('127.0.0.1', 9))") == "EMSGSIZE"
    assert at_work.fails(new + "s.sendto(b'', ('127.0.0.1', 0))") == "EINVAL"
    assert at_work.fails(new + "s.sendto(b'', ('192.0.2.1', 9))") == "EACCES"
    assert at_work.fails(new + "s.connect(('192.0.2.1', 9))") == "EACCES"
    assert at_work.fails(new + "s.sendmsg([b'x'])") == "EDESTADDRREQ"
    assert at_work.fails(new + "s.connect(('127.0.0.1', 9)); s.send(bytes(65508))") == "EMSGSIZE"
    assert at_work.fails(new + "s.sendmsg([bytes(65507), b'x'], [], 0, ('127.0.0.1', 9))") == "EMSGSIZE"
    assert (
        at_work.fails(new + "s.sendto(b'part', socket.MSG_MORE, ('127.0.0.1', 9))") == errno.errorcode[errno.EOPNOTSUPP]
    )
    assert (
        at_work.fails(new + "s.sendmsg([b'part'], [], socket.MSG_MORE, ('127.0.0.1', 9))")
        == errno.errorcode[errno.EOPNOTSUPP]
    )
    assert at_work.fails(new + "s.sendmsg([b'x'], [], 0, ('127.0.0.1', 0))") == "EINVAL"
    assert at_work.fails(new + "s.sendmsg([b'x'], [], 0, ('192.0.2.1', 9))") == "EACCES"
    assert at_work.fails(new + "s.sendmsg([b'x'], [(0, 99, b'')], 0, ('127.0.0.1', 9))") == "EINVAL"
    assert at_work.fails(new + "s.recvmsg(1, 0, socket.MSG_DONTWAIT)") == "EAGAIN"
    assert at_work.fails(new + "s.recvmsg(1, 0, socket.MSG_ERRQUEUE)") == "EAGAIN"
    assert at_work.fails(new + "s.listen()") == "ENOTSUP"
    assert at_work.fails(new + "s.accept()") == "ENOTSUP"
    assert at_work.fails(new + "s.getpeername()") == "ENOTCONN"
    assert at_work.fails(new + "s.setsockopt(6, 1, 1)") == "ENOPROTOOPT"


def test_what_is_too_large_for_a_datagram_and_was_written_all_the_same_is_told_next(at_work):
    code = """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("127.0.0.1", 9))
        os.write(sock.fileno(), bytes(65508))
        while not (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            pass
        result = errno.errorcode[code]
    """
    assert at_work.run(code) == "EMSGSIZE"


def test_an_icmp_error_wakes_who_polls_and_who_receives(at_work):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    code = """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("127.0.0.1", port))
        result = []
        for receive in (
            lambda: sock.recv(10),
            lambda: sock.recvfrom(10),
            lambda: sock.recvmsg(10),
            lambda: os.strerror(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)),
        ):
            sock.send(b"x")
            select.select([sock], [], [])
            try:
                result.append(receive())
            except OSError as error:
                result.append(errno.errorcode[error.errno])
            result += select.select([sock], [], [], 0)[0]
        sock.send(b"x")
        try:
            sock.recv(10)  # waits
        except OSError as error:
            result.append(errno.errorcode[error.errno])
    """
    refused = "ECONNREFUSED"
    assert at_work.run(code, port=port) == [refused, refused, refused, "Connection refused", refused]


def test_what_came_before_and_after_an_error_is_received(at_work):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        port = peer.getsockname()[1]
        code = """
            import builtins
            builtins.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect(("127.0.0.1", port))
            result = sock.getsockname()
        """
        own = tuple(at_work.run(code, port=port))
        peer.sendto(b"before", own)
        at_work.run("select.select([sock], [], [])")
    code = """
        sock.send(b"x")
        result = []
        while len(result) < 2:
            try:
                result.append(sock.recv(10).decode())
            except OSError as error:
                result.append(errno.errorcode[error.errno])
    """
    assert sorted(at_work.run(code)) == ["ECONNREFUSED", "before"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", port))
        peer.sendto(b"after", own)
        peer.sendto(b"", own)
        assert at_work.run("result = [sock.recv(10), sock.recv(10)]; sock.close()") == [b"after", b""]


def test_a_peer_that_no_rule_allows_is_not_heard(tmp_path):
    with enclave(tmp_path, allow_net=["127.0.0.1:9"]) as at_work:
        code = """
            import builtins
            builtins.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
            result = sock.getsockname()
        """
        address = tuple(at_work.run(code))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"psst", address)
        assert at_work.run("result = select.select([sock], [], [], 0.1)[0]") == []


def test_datagrams_without_a_destination_are_told_of(tmp_path, capfd):
    """As are those that go to an address by a copy under a number which the filter does not know for a datagram socket's."""
    with enclave(tmp_path, **EVERYWHERE) as at_work:
        code = """
            first = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock = socket.socket(fileno=os.dup2(first.fileno(), 500))
            sock.sendmsg([b"x"], [], 0, ("127.0.0.1", 9))
            sock.recvfrom(1)  # waits for no answer
        """
        assert at_work.fails(code) == "EDESTADDRREQ"
        for _ in range(1000):
            if at_work.client.refused:
                break
            at_work.run("time.sleep(0.001)")
        assert at_work.client.refused == {"sendmsg": 1}
    assert "the enclave called sendmsg, which fails there with EDESTADDRREQ" in capfd.readouterr().err


# -- names ----------------------------------------------------------------------------------------------------------------


def test_a_name_costs_one_round_trip(tmp_path, asked):
    with enclave(tmp_path, allow_net=["db.test"]) as at_work:
        before = at_work.client.stats()
        found = at_work.run("result = [each[4][0] for each in socket.getaddrinfo('db.test', 80, type=1)]")
        after = at_work.client.stats()
        assert set(found) <= {"127.0.0.1", "::1"}
        assert "127.0.0.1" in found
        assert after["round_trips"] - before["round_trips"] == 1
        assert after["host_calls"]["resolve"] == 1
    assert asked == ["db.test"]


def test_a_connection_to_a_name_that_is_allowed(tmp_path, asked):
    with server(echo) as port, enclave(tmp_path, allow_net=[f"four.test:{port}"]) as at_work:
        code = """
            with socket.create_connection(("four.test", port)) as sock:
                sock.sendall(b"x")
                result = [sock.recv(10), sock.getpeername()]
        """
        assert at_work.run(code, port=port) == [b"x", ["127.0.0.1", port]]
        assert at_work.run("result = socket.create_connection(('127.0.0.1', port)).getpeername()[1]", port=port) == port
        assert at_work.fails("socket.create_connection(('127.0.0.1', port))", port=port + 1) == "EACCES"
    assert asked == ["four.test"]


def test_an_address_is_checked_against_what_the_rules_names_resolve_to(tmp_path, asked):
    with server(echo) as port, enclave(tmp_path, allow_net=[f"four.test:{port}"]) as at_work:
        assert at_work.run("result = socket.create_connection(('127.0.0.1', port)).getpeername()[1]", port=port) == port
        assert asked == ["four.test"]
        assert at_work.fails("socket.create_connection(('127.0.0.2', port))", port=port) == "EACCES"
        assert asked == ["four.test"]  # it was asked for a moment ago


def test_a_name_that_is_not_allowed_is_denied_by_name_and_not_looked_up(tmp_path, asked, capfd):
    with enclave(tmp_path, allow_net=["db.test"]) as at_work:
        for _ in range(2):
            assert at_work.fails("socket.create_connection(('other.test', 5432))") == "EACCES"
        assert at_work.client.stats()["denied"] == {"connect": 2}
    assert asked == []
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("denied")]
    assert lines == ["denied: net other.test:5432 (add --allow-net other.test:5432)"]


def test_a_name_that_does_not_exist(tmp_path, asked):
    with enclave(tmp_path, allow_net=["nowhere.test"]) as at_work:
        code = """
            try:
                socket.getaddrinfo("nowhere.test", 80)
            except socket.gaierror as error:
                result = error.errno
        """
        assert at_work.run(code) == socket.EAI_NONAME
    assert asked == ["nowhere.test"]


def test_what_needs_no_look_up(tmp_path, asked):
    with enclave(tmp_path) as at_work:
        assert at_work.run("result = socket.gethostbyname('localhost')") == "127.0.0.1"
        assert at_work.run("result = socket.gethostbyname(socket.gethostname())") == "127.0.0.1"
        assert at_work.run("result = isinstance(socket.getfqdn('127.0.0.1'), str)")
        assert "resolve" not in at_work.client.stats()["host_calls"]
        assert at_work.client.stats()["denied"] == {}
    assert asked == []


# -- policy ---------------------------------------------------------------------------------------------------------------


def test_nothing_is_reached_without_a_rule(tmp_path, capfd):
    with enclave(tmp_path) as at_work:
        assert at_work.fails("socket.create_connection(('127.0.0.1', 1))") == "EACCES"
        assert at_work.fails("socket.create_server(('127.0.0.1', 8123))") == "EACCES"
        assert at_work.fails("socket.create_server(('127.0.0.1', 0))") == "EACCES"
        assert at_work.client.stats()["denied"] == {"connect": 1, "bind": 2}
    assert [line for line in capfd.readouterr().err.splitlines() if line.startswith("denied")] == [
        "denied: net 127.0.0.1:1 (add --allow-net 127.0.0.1:1)",
        "denied: listen 127.0.0.1:8123 (add --allow-listen 127.0.0.1:8123)",
        "denied: listen 127.0.0.1:0 (add --allow-listen 127.0.0.1:0)",
    ]


def test_listening_needs_its_own_rule(tmp_path):
    with enclave(tmp_path, allow_net=["127.0.0.1"]) as at_work:
        assert at_work.fails("s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()") == "EACCES"
