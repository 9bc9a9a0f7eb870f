"""The client's sockets, asked by an enclave that keeps no rule; and which addresses a policy lets it reach."""

import contextlib
import queue
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.hostcall.client.net_policy import FRESH_SECONDS, REMEMBERED_SECONDS, NetPolicy
from adyton.hostcall.client.policy import HostCallPolicy
from adyton.hostcall.client.sockets import ClientSockets

PATIENCE = 60.0
STREAM = net.New("inet", "stream", [])
DATAGRAM = net.New("inet", "datagram", [])
ANY = net.Endpoint("127.0.0.1", 0)


def policy(**lists):
    return HostCallPolicy.create(base="/", **lists)


class Connection:
    """What an enclave sees: `ask` gives the result of a request; `next` the next message of a kind."""

    def __init__(self, **lists):
        self.results = queue.SimpleQueue()
        self.messages = queue.SimpleQueue()
        self.denials = []
        self.pending = 0
        self.sockets = ClientSockets(NetPolicy(policy(**lists)), self)

    def send(self, *messages):
        for each in messages:
            self.messages.put(each)

    def reply(self, call, result):
        self.results.put((call, result))

    def bytes_pending(self):
        return self.pending

    def submit(self, step):
        threading.Thread(target=step).start()

    def note(self, name, outcome, started):
        assert outcome

    def denied(self, name, denied):
        self.denials.append(str(denied))

    def failed(self, error):
        self.results.put((0, error))

    def ask(self, request):
        self.sockets.request(1, request)
        return self.results.get(timeout=PATIENCE)[1]

    def next(self, kind):
        while True:
            message = self.messages.get(timeout=PATIENCE)
            if isinstance(message, kind):
                return message


@pytest.fixture
def connection():
    made = Connection(net=["127.0.0.1"], listen=["127.0.0.1:0"])
    yield made
    made.sockets.close()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(PATIENCE)
        yield made


def connect(connection, listener, number=1):
    result = connection.ask(net.Connect(number, STREAM, net.Endpoint(*listener.getsockname())))
    assert isinstance(result, net.Connected)
    connection.next(net.Begun)
    assert connection.next(net.Credit).size == net.WINDOW - net.FIRST
    connection.sockets.message(net.Credit(number, net.WINDOW - net.FIRST))
    accepted, _ = listener.accept()
    accepted.settimeout(PATIENCE)
    return accepted


def test_bytes_go_both_ways_within_the_window(connection, listener):
    with connect(connection, listener) as peer:
        connection.sockets.message(net.Send(1, b"hello"))
        assert peer.recv(100) == b"hello"
        peer.sendall(bytes(3 * net.WINDOW // 2 // 2))
        peer.setblocking(False)
        got = 0
        while got < net.WINDOW // 2:
            got += len(connection.next(net.Received).data)
        peer.close()


@pytest.mark.parametrize("request_", [net.Resolve("localhost"), net.GetOption(None, STREAM, "SO_RCVBUF")])
def test_a_defect_is_told_of_and_leaves_nobody_waiting(connection, monkeypatch, request_):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(connection, "note", broken)
    assert repr(connection.ask(request_)) == "RuntimeError('a defect')"


def test_messages_are_taken_in_their_order_by_whichever_thread(connection, listener):
    with connect(connection, listener) as peer:
        numbers = b"".join(b"%06d" % number for number in range(5000))
        for start in range(0, len(numbers), 6):
            connection.sockets.message(net.Send(1, numbers[start : start + 6]))
            if not start % 100:
                connection.sockets.request(1, net.GetOption(1, STREAM, "SO_RCVBUF"))  # a step of the other thread's
                peer.sendall(b"x")
        connection.sockets.message(net.ShutWrite(1))
        got = b""
        while data := peer.recv(1 << 16):
            got += data
        assert got == numbers


def test_a_defect_in_taking_a_message_is_told_of(connection, listener, monkeypatch):
    def broken(*_):
        raise RuntimeError("a defect")

    with connect(connection, listener) as peer:
        monkeypatch.setattr(connection.sockets, "_send", broken)
        connection.sockets.message(net.Send(1, b"x"))
        assert repr(connection.results.get(timeout=PATIENCE)[1]) == "RuntimeError('a defect')"
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b""  # all sockets are closed


def test_nothing_is_read_beyond_the_credit(connection, listener):
    with connect(connection, listener) as peer:
        pusher = threading.Thread(target=peer.sendall, args=(bytes(net.WINDOW + 1000),))
        pusher.start()
        got = 0
        while got < net.WINDOW:
            got += len(connection.next(net.Received).data)
        assert got == net.WINDOW
        assert connection.messages.get(timeout=PATIENCE) == net.Blocked(1)
        with pytest.raises(queue.Empty):
            connection.messages.get(timeout=0.05)
        connection.sockets.message(net.Credit(1, 1000))
        pusher.join(PATIENCE)
        got = 0
        while got < 1000:
            got += len(connection.next(net.Received).data)


@given(st.integers(1, net.MAX_WINDOW), st.integers(0, net.MAX_WINDOW), st.integers(0, net.MAX_GROWTH))
def test_windows_grow_within_bounds_and_not_for_who_is_slow(window, waiting, grown):
    size = net.growth(window, waiting, grown)
    assert 0 <= size <= window
    assert window + size <= net.MAX_WINDOW
    assert grown + size <= net.MAX_GROWTH
    assert not size or waiting <= window // 4


@given(st.integers(0, net.MAX_GROWTH))
def test_what_streams_have_beyond_their_first_window_is_bounded(grown):
    size = net.opening(grown)
    assert 0 <= size <= net.WINDOW - net.FIRST
    assert grown + size <= net.MAX_GROWTH


def test_a_connection_that_comes_has_the_window_of_one_that_is_made(connection):
    there = connection.ask(net.Bind(1, STREAM, ANY)).local
    connection.ask(net.Listen(1, STREAM, 1, [2]))
    with socket.create_connection((there.host, there.port)) as peer:
        assert connection.next(net.Incoming).accepted == 2
        assert connection.next(net.Credit) == net.Credit(2, net.WINDOW - net.FIRST)
        connection.sockets.message(net.Send(2, bytes(net.CHUNK)))
        peer.settimeout(PATIENCE)
        assert peer.recv(1)


def test_a_stream_whose_bytes_are_taken_gets_a_larger_window_when_its_sender_is_blocked(connection, listener):
    with connect(connection, listener):
        sizes = []
        for _ in range(6):
            connection.sockets.message(net.Blocked(1))
        connection.ask(net.GetOption(1, STREAM, "SO_RCVBUF"))  # all before it has been seen to
        while not connection.messages.empty():
            sizes.append(connection.messages.get().size)
        assert sizes == [net.WINDOW, 2 * net.WINDOW, 4 * net.WINDOW]
        assert net.WINDOW + sum(sizes) == net.MAX_WINDOW


def test_a_peer_that_is_slow_gets_no_larger_window(connection, listener):
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small = net.New("inet", "stream", [net.Option("SO_SNDBUF", [4096])])
    connection.ask(net.Connect(1, small, net.Endpoint(*listener.getsockname())))
    connection.next(net.Credit)
    with listener.accept()[0]:
        for _ in range(net.WINDOW // net.CHUNK):
            connection.sockets.message(net.Send(1, bytes(net.CHUNK)))
        connection.sockets.message(net.Blocked(1))
        connection.ask(net.GetOption(1, STREAM, "SO_RCVBUF"))
        assert connection.messages.empty()


def test_nothing_is_read_while_the_enclave_is_behind(connection, listener):
    with connect(connection, listener) as peer:
        connection.pending = 1 << 30
        peer.sendall(b"x")
        with pytest.raises(queue.Empty):
            connection.messages.get(timeout=0.05)
        connection.pending = 0
        connection.sockets.caught_up()
        assert connection.next(net.Received).data == b"x"


def test_more_than_there_is_credit_for_breaks_the_socket(connection, listener):
    with connect(connection, listener) as peer:
        for _ in range(net.WINDOW // net.CHUNK + 400):
            connection.sockets.message(net.Send(1, bytes(net.CHUNK)))
        # A peer that reads nothing: what is beyond the window and the system's buffers is a breach.
        for _ in range(2000):
            connection.sockets.message(net.Send(1, bytes(net.CHUNK)))
        assert connection.next(net.Broken).errno == "EIO"
        peer.settimeout(PATIENCE)


@pytest.mark.parametrize(
    "request_",
    [
        net.Connect(1, STREAM, net.Endpoint("localhost", 80)),
        net.Connect(1, STREAM, net.Endpoint("127.0.0.1%lo", 80)),
        net.Bind(1, STREAM, net.Endpoint("x" * 40, 1)),
        net.Connect(1, net.New("inet6", "stream", []), net.Endpoint("127.0.0.1", 1)),
        net.Connect(1, net.New("inet", "stream", [net.Option("SO_ATTACH_FILTER", [1])]), net.Endpoint("127.0.0.1", 1)),
        net.GetOption(None, STREAM, "SO_BINDTODEVICE"),
        net.GetOption(77, STREAM, "nonsense"),
        net.Listen(1, DATAGRAM, 1, []),
        net.Reach(1, STREAM, net.Endpoint("127.0.0.1", 9)),
    ],
)
def test_requests_that_make_no_sense_fail(connection, request_):
    result = connection.ask(request_)
    assert isinstance(result, abi.Failed)
    assert isinstance(connection.ask(net.Bind(2, STREAM, ANY)), net.Bound)


def test_messages_that_make_no_sense_break_what_they_name_and_nothing_else(connection, listener):
    with connect(connection, listener):
        for message in (
            net.Credit(99, 1),
            net.Send(99, b"x"),
            net.CloseSocket(99, reset=True),
            net.Accepts(1, [5]),
            net.SetOption(1, net.Option("SO_BINDTODEVICE", [1])),
            net.SetOption(1, net.Option("SO_RCVBUF", [-1])),
            net.SendTo(1, None, b"x"),
        ):
            connection.sockets.message(message)
        assert connection.next(net.Broken).socket == 1
    assert isinstance(connection.ask(net.Bind(2, STREAM, ANY)), net.Bound)


@pytest.mark.parametrize(("family", "host"), [("inet", "127.0.0.1"), ("inet6", "::1")])
def test_what_goes_with_a_datagram_comes_with_it_if_it_is_asked_for(family, host):
    connection = Connection(net=["127.0.0.1", "[::1]"], listen=["127.0.0.1:0", "[::1]:0"])
    names = {"inet": ["IP_PKTINFO", "IP_RECVTTL", "IP_RECVTOS"], "inet6": ["IPV6_RECVPKTINFO", "IPV6_RECVHOPLIMIT"]}
    told = net.New(family, "datagram", [net.Option(name, [1]) for name in names[family]])
    try:
        there = connection.ask(net.Bind(1, told, net.Endpoint(host, 0))).local
        assert isinstance(connection.ask(net.Reach(2, net.New(family, "datagram", []), there)), net.Bound)
        if family == "inet6":
            connection.sockets.message(net.SetOption(1, net.Option("IPV6_RECVTCLASS", [1])))
        wanted = net.Ancillary(host, 5, 32)
        connection.sockets.message(net.SendTo(2, there, b"x", wanted))
        got = connection.next(net.ReceivedFrom)
        assert (got.data, got.ancillary) == (b"x", wanted)
        for name in (*names[family], "IPV6_RECVTCLASS"):
            connection.sockets.message(net.SetOption(1, net.Option(name, [0])))
        connection.sockets.message(net.SendTo(2, there, b"y", wanted))
        got = connection.next(net.ReceivedFrom)
        assert (got.data, got.ancillary) == (b"y", None)
        for wrong in (
            net.SendTo(2, there, b"x", net.Ancillary("no address")),
            net.SendTo(2, net.Endpoint("nowhere", 9), b"x"),
        ):
            connection.sockets.message(wrong)
            assert connection.next(net.Broken).errno == "EIO"
        connection.sockets.message(net.SendTo(2, there, b"z"))
        assert connection.next(net.ReceivedFrom).data == b"z"
    finally:
        connection.sockets.close()


def test_a_bound_socket_whose_connect_has_failed_is_kept(connection, listener):
    assert isinstance(connection.ask(net.Bind(1, STREAM, ANY)), net.Bound)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = connection.ask(net.Connect(1, STREAM, net.Endpoint(*closed.getsockname())))
    assert refused == abi.Failed("ECONNREFUSED")
    with connect(connection, listener) as peer:
        connection.sockets.message(net.Send(1, b"hello"))
        assert peer.recv(100) == b"hello"


def test_a_connect_that_fails_at_once_is_the_end_of_nothing_else():
    """No stream goes to a group: the system says so before it sends anything, as where there is no way to an address."""
    connection = Connection(net=["239.1.2.3"], listen=["127.0.0.1:0"])
    try:
        for number in range(1, 4):
            result = connection.ask(net.Connect(number, STREAM, net.Endpoint("239.1.2.3", 80)))
            assert result == abi.Failed("ENETUNREACH")
        assert isinstance(connection.ask(net.Bind(3, STREAM, ANY)), net.Bound)
        assert connection.ask(net.Connect(3, STREAM, net.Endpoint("239.1.2.3", 80))) == abi.Failed("ENETUNREACH")
        assert connection.ask(net.Bind(3, STREAM, ANY)) == abi.Failed("EINVAL")  # it is the same, and has its port
    finally:
        connection.sockets.close()


def test_whether_there_is_a_way_for_datagrams_is_told_before_any_is_sent():
    connection = Connection(net=["127.0.0.0/8", "203.0.113.1"], listen=["127.0.0.1:0"])
    broadcast, elsewhere = net.Endpoint("127.255.255.255", 9), net.Endpoint("203.0.113.1", 9)
    try:
        assert connection.ask(net.Reach(1, DATAGRAM, broadcast)) == abi.Failed("EACCES")
        assert not connection.denials  # the system says so, and no rule
        allowed = net.New("inet", "datagram", [net.Option("SO_BROADCAST", [1])])
        assert isinstance(connection.ask(net.Reach(2, allowed, broadcast)), net.Bound)
        assert isinstance(connection.ask(net.Bind(3, DATAGRAM, ANY)), net.Bound)
        assert connection.ask(net.Reach(3, DATAGRAM, elsewhere)) == abi.Failed("EINVAL")  # none from the loopback
        assert isinstance(connection.ask(net.Reach(3, DATAGRAM, net.Endpoint("127.0.0.1", 9))), net.Bound)
    finally:
        connection.sockets.close()


def test_from_where_a_connect_is_under_way_is_told_before_its_end(connection):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for each in fillers:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        connection.sockets.request(1, net.Connect(7, STREAM, net.Endpoint(*full.getsockname())))
        begun = connection.next(net.Begun)
        assert (begun.socket, begun.local.host) == (7, "127.0.0.1")
        assert begun.local.port
        assert connection.results.empty()
        for each in fillers:
            each.close()


def test_a_number_that_is_in_use_is_no_other_kind(connection, listener):
    with connect(connection, listener):
        assert connection.ask(net.Reach(1, DATAGRAM, ANY)) == abi.Failed("EINVAL")


def test_a_number_that_is_in_use_is_of_no_other_family():
    connection = Connection(net=["127.0.0.1"], listen=["[::1]:0"])
    try:
        bind = net.Bind(1, net.New("inet6", "stream", []), net.Endpoint("::1", 0))
        assert isinstance(connection.ask(bind), net.Bound)
        assert connection.ask(net.Reach(1, STREAM, net.Endpoint("127.0.0.1", 9))) == abi.Failed("EINVAL")
    finally:
        connection.sockets.close()


def test_what_is_closed_before_it_is_decided_is_not_opened(connection, listener):
    gate = threading.Event()
    submit = connection.submit
    connection.submit = lambda step: submit(lambda: (gate.wait(PATIENCE), step()))
    connection.sockets.request(1, net.Connect(7, STREAM, net.Endpoint(*listener.getsockname())))
    connection.sockets.message(net.CloseSocket(7, reset=False))
    connection.sockets.request(2, net.GetOption(None, STREAM, "SO_REUSEADDR"))
    assert connection.results.get(timeout=PATIENCE)[0] == 2  # the close has been taken
    gate.set()
    assert connection.results.get(timeout=PATIENCE) == (1, abi.Failed("EBADF"))


def test_a_listener_accepts_no_more_than_it_has_numbers_for(connection):
    connection.ask(net.Bind(1, STREAM, ANY))
    bound = connection.ask(net.Listen(1, STREAM, 5, [11, 12]))
    clients = [socket.create_connection((bound.local.host, bound.local.port), PATIENCE) for _ in range(4)]
    assert [connection.next(net.Incoming).accepted for _ in range(2)] == [11, 12]
    connection.next(net.Credit)
    with pytest.raises(queue.Empty):
        connection.messages.get(timeout=0.05)
    connection.sockets.message(net.Accepts(1, [13]))
    assert connection.next(net.Incoming).accepted == 13
    for each in clients:
        each.close()


def test_listening_is_decided_by_where_it_is_bound():
    connection = Connection(net=["127.0.0.1"])
    assert isinstance(connection.ask(net.Bind(1, STREAM, ANY)), net.Bound)
    assert connection.ask(net.Listen(1, STREAM, 5, [2])) == abi.Failed("EACCES")
    assert connection.denials[0].startswith("denied: listen 127.0.0.1:")
    connection.sockets.close()


def test_a_listener_that_was_not_bound_would_be_everybodys(connection):
    assert connection.ask(net.Listen(1, STREAM, 5, [2])) == abi.Failed("EACCES")
    assert connection.denials == ["denied: listen 0.0.0.0:0 (add --allow-listen 0.0.0.0:0)"]


def test_closing_closes_everything(connection, listener):
    with connect(connection, listener) as peer:
        connection.sockets.close()
        assert peer.recv(10) == b""
        connection.sockets.close()
        connection.sockets.message(net.Send(1, b"late"))
        connection.sockets.request(9, net.Bind(3, STREAM, ANY))


# -- the policy -------------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def judge(look_up, clock=time.monotonic, **lists):
    return NetPolicy(policy(**lists), look_up, clock)


def nobody(name):
    raise socket.gaierror(socket.EAI_NONAME, name)


@pytest.mark.parametrize(
    ("rule", "host", "port", "allowed"),
    [
        ("10.0.0.0/8:443", "10.1.2.3", 443, True),
        ("10.0.0.0/8:443", "10.1.2.3", 80, False),
        ("10.0.0.0/8:443", "11.1.2.3", 443, False),
        ("10.0.0.0/8:443", "::ffff:10.1.2.3", 443, True),
        ("127.0.0.1", "127.0.0.1", 1, True),
        ("127.0.0.1", "127.0.0.2", 1, False),
        ("127.0.0.1", "0.0.0.0", 1, False),
        ("[::1]:80", "::1", 80, True),
        ("[::1]:80", "0:0:0:0:0:0:0:1", 80, True),
        ("[::1]:80", "127.0.0.1", 80, False),
        ("0.0.0.0/0", "192.0.2.1", 9, True),
        ("0.0.0.0/0", "::1", 9, False),
    ],
)
def test_networks(rule, host, port, allowed):
    assert (judge(nobody, net=[rule]).connect(host, port) is None) is allowed


def test_names_are_looked_up_for_addresses_and_remembered():
    asked = []
    clock = Clock()
    addresses = {"db.example": ["192.0.2.7"]}

    def look_up(name):
        asked.append(name)
        return addresses[name]

    judged = judge(look_up, clock, net=["db.example:5432", "DB.example.:80"])
    assert judged.connect("192.0.2.7", 5432) is None
    assert judged.connect("192.0.2.7", 80) is None
    assert str(judged.connect("192.0.2.7", 443)) == "denied: net db.example:443 (add --allow-net db.example:443)"
    assert asked == ["db.example"]
    addresses["db.example"] = ["192.0.2.8"]
    assert judged.connect("192.0.2.8", 80) is not None  # looked up a moment ago
    clock.now += FRESH_SECONDS + 1
    assert judged.connect("192.0.2.8", 80) is None
    assert judged.connect("192.0.2.7", 80) is None  # it was the name's not long ago
    clock.now += REMEMBERED_SECONDS + 1
    assert judged.connect("192.0.2.7", 80) is not None
    assert judged.resolve("db.EXAMPLE.") == ["192.0.2.8"]


def test_a_name_without_a_rule_leads_nowhere():
    judged = judge(nobody, net=["db.example"])
    (nowhere,) = judged.resolve("other.example")
    assert judged.resolve("OTHER.example") == [nowhere]
    assert judged.resolve("third.example") != [nowhere]
    assert str(judged.connect(nowhere, 1)) == "denied: net other.example:1 (add --allow-net other.example:1)"


def test_a_rule_for_every_address_has_every_name_and_no_placeholder():
    judged = judge(lambda _name: ["192.0.2.9"], net=["0.0.0.0/0", "db.example:1"])
    assert judged.resolve("any.example") == ["192.0.2.9"]
    assert judged.connect("192.0.2.9", 1) is None


@pytest.mark.parametrize(
    ("rule", "host", "port", "allowed"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, True),
        ("127.0.0.1:8080", "127.0.0.1", 8081, False),
        ("127.0.0.1:8080", "0.0.0.0", 8080, False),
        ("127.0.0.1:0", "127.0.0.1", 8081, True),
        ("127.0.0.1:0", "127.0.0.1", 0, True),
        ("127.0.0.1:8080", "127.0.0.1", 0, False),
        ("me.example:80", "192.0.2.1", 80, True),
        ("me.example:80", "192.0.2.2", 80, False),
    ],
)
def test_listening(rule, host, port, allowed):
    judged = judge(lambda _name: ["192.0.2.1"], listen=[rule])
    judged.look_up_listeners()
    assert (judged.listen(host, port) is None) is allowed
