"""What a socket does in each state, in an enclave and on the client itself: the same program in both places, and each difference has a reason.

See socket_states, and docs/sockets.md, which has those that a program can meet.
"""

import fnmatch
import socket
import struct
import threading
from contextlib import ExitStack

import pytest
import socket_states
from enclave_sockets import PATIENCE, enclave, server

import adyton

pytestmark = pytest.mark.sandbox

ALLOWED = {"allow_net": ["127.0.0.1"], "allow_listen": ["127.0.0.1:0", "0.0.0.0:0"]}
SENDS = ("send", "send of nothing", "send without a signal", "sendmsg", "write")
RECEIVES = ("recv", "recv peeking", "recv of all", "recv truncating", "recv_into", "recvmsg", "read")

LATER = "what is sent is on its way: that nobody takes it shows later"
COUNTS = "the kernel counts what it has to keep for bytes on their way, and of the client's socket nothing"

# Reason → states, operations; * stands for anything. Nothing else may differ, and each of these does, but for what is a matter of moments.
DIFFERENCES = {
    "a stand-in is a connected pair from the beginning: what goes by without the supervisor is the kernel's": [
        (
            ("new", "bound", "refused, while connect waited"),
            (*SENDS, *RECEIVES, "poll", "epoll", "select"),
        ),
        (("listening", "a connection to accept"), (*RECEIVES, "FIONREAD")),
    ],
    COUNTS: [
        (
            ("listening", "a connection to accept", "connecting", "refused*", "connected*", "shut*", "data, reset"),
            ("SIOCOUTQ",),
        ),
    ],
    "to the kernel any loss is a reset, and EPIPE comes before it": [
        (("refused",), RECEIVES),
        (("refused", "reset", "data, reset"), SENDS),
        (("data, reset",), ("recv of all",)),
    ],
    "nothing is sent where nothing is to be sent, and nobody waits for room": [(("connecting",), ("send of nothing",))],
    "a socket that has lost its connection is bound anew by none": [
        (("refused*", "reset*", "data, reset", "shut by both"), ("bind",)),
    ],
    "a signal is the kernel's, and this call is the supervisor's": [(("*",), ("sendto",))],
    LATER: [(("closed by the peer",), SENDS), (("udp, refused",), ("sendmsg",))],
    "a datagram socket's stand-in is a connected pair: what it sends without an address is judged later": [
        (("udp, new", "udp, bound", "udp, data"), ("send", "send of nothing", "send without a signal", "write")),
        (("udp, refused",), ("send", "send of nothing", "send without a signal", "write")),
    ],
    "an error is shown as a datagram that is none": [(("udp, refused",), ("poll", "epoll", "read"))],
    "a pair that is shut is at its end": [(("udp, shut",), (*RECEIVES, "recv of 1", "recvfrom"))],
    "that there is no urgent data has another name": [(("udp, *",), ("SIOCATMARK",))],
}


def explained(cell):
    return [
        (reason, state, operation)
        for reason, rules in DIFFERENCES.items()
        for states, operations in rules
        for state in states
        for operation in operations
        if fnmatch.fnmatchcase(cell, f"{state}: {operation}")
    ]


def until_its_end(connection):
    """Keep it open, whatever it sends, until the test ends."""
    kept.append(connection.dup())
    while connection.recv(100):
        pass


kept = []


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def holds(connection):
    connection.recv(1)
    until_its_end(connection)


def sends(connection):
    connection.recv(1)
    connection.sendall(b"hello")
    until_its_end(connection)


def shuts(connection):
    connection.recv(1)
    connection.shutdown(socket.SHUT_WR)
    until_its_end(connection)


def sends_and_shuts(connection):
    connection.recv(1)
    connection.sendall(b"hello")
    connection.shutdown(socket.SHUT_WR)
    until_its_end(connection)


def closes(connection):
    connection.recv(1)


def resets(connection):
    connection.recv(1)
    reset(connection)


def sends_and_resets(connection):
    connection.recv(1)
    connection.sendall(b"hello")
    connection.recv(1)
    reset(connection)


PEERS = {
    "holds": holds,
    "data": sends,
    "shuts": shuts,
    "data, shuts": sends_and_shuts,
    "closes": closes,
    "resets": resets,
    "data, resets": sends_and_resets,
}


@pytest.fixture
def ports():
    """Of peers by what they do, when they have got a byte."""
    with ExitStack() as stack:
        found = {name: stack.enter_context(server(serve)) for name, serve in PEERS.items()}
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # what comes now waits
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        closed, datagrams, no_datagrams = (
            stack.enter_context(socket.socket(socket.AF_INET, kind))
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_DGRAM)
        )
        for each in (closed, datagrams, no_datagrams):
            each.bind(("127.0.0.1", 0))
        no_datagrams.connect(("127.0.0.1", 1))  # it has the port, and takes nothing from others: they are refused
        found |= {"full": full.getsockname()[1], "closed": closed.getsockname()[1]}
        found |= {"datagrams": datagrams.getsockname()[1], "no datagrams": no_datagrams.getsockname()[1]}
        yield found
    for each in kept:
        each.close()
    kept.clear()


def test_sockets_in_an_enclave_differ_from_the_clients_as_is_known(ports):
    states = [*socket_states.STREAM_STATES, *socket_states.DATAGRAM_STATES]
    here = socket_states.observe(ports, states)
    with adyton.load(socket_states.__file__, **ALLOWED) as client:
        there = client.call("observe", ports, states)
    assert not [cell for cell, outcome in here.items() if "not entered" in outcome]
    assert not [cell for cell, outcome in there.items() if "not entered" in outcome]
    differing = {cell: (outcome, there[cell]) for cell, outcome in here.items() if outcome != there[cell]}
    assert {cell: outcomes for cell, outcomes in differing.items() if not explained(cell)} == {}
    needed = {rule for cell in differing for rule in explained(cell)}
    every = {
        (reason, state, operation)
        for reason, rules in DIFFERENCES.items()
        for states, operations in rules
        for state in states
        for operation in operations
        if reason not in (LATER, COUNTS)
    }
    assert every - needed == set()


# -- what was found so ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    with enclave(tmp_path_factory.mktemp("states"), **ALLOWED) as found:
        yield found


def test_a_socket_that_is_shut_both_ways_is_the_clients_until_it_is_closed(at_work):
    """Both directions shut look like a closed end, to the kernel. Names and options are the client's all the same, and the peer is not cut off."""
    taken, closed = threading.Event(), threading.Event()

    def serve(connection):
        assert connection.recv(10) == b""
        connection.sendall(bytes(8 << 20))  # more than there is room for on the way
        taken.set()
        try:
            while True:
                connection.sendall(bytes(1000))
        except OSError:
            closed.set()

    with server(serve) as port:
        code = """
            kept = socket.create_connection(("127.0.0.1", port))
            kept.shutdown(socket.SHUT_RDWR)
            seen = [kept.recv(1), kept.getsockname()[0], kept.getpeername(), kept.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)]
            kept.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            result = [*seen, kept.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)]
            socket.kept = kept  # until the next entry
        """
        expected = [b"", "127.0.0.1", ["127.0.0.1", port], socket.AF_INET, 1]
        assert at_work.run(code, port=port) == expected
        assert taken.wait(PATIENCE)
        at_work.run("socket.kept.close()")
        assert closed.wait(PATIENCE)


def test_a_datagram_socket_that_is_shut_for_writing_sends_nothing_more(at_work):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker:
        taker.bind(("127.0.0.1", 0))
        taker.settimeout(PATIENCE)
        code = """
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect(("127.0.0.1", port))
            sock.send(b"first")
            own = sock.getsockname()
            sock.shutdown(socket.SHUT_WR)
            try:
                sock.send(b"second")
            except BrokenPipeError:
                pass
            other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            other.sendto(b"last", ("127.0.0.1", port))
            result = [sock.getsockname() == own, sock.getpeername()[1]]
        """
        port = taker.getsockname()[1]
        assert at_work.run(code, port=port) == [True, port]
        assert [taker.recv(100), taker.recv(100)] == [b"first", b"last"]


def test_who_polls_a_listener_is_woken_when_it_is_shut_down(at_work):
    code = """
        listener = socket.create_server(("127.0.0.1", 0))
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        threading.Timer(0.05, listener.shutdown, [socket.SHUT_RD]).start()
        woken = [events & select.POLLHUP for _, events in poller.poll(patience)]
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.listen()  # in its place: any port
        result = [woken, listener.getsockname()[1] > 0]
    """
    assert at_work.run(code, patience=PATIENCE * 1000) == [[16], True]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_file_may_take_the_descriptor_of_a_socket(tmp_path, kind):
    """The supervisor looks whether it is still there, and must not close a duplicate of a file that it serves itself."""
    (tmp_path / "file").write_text("content")
    with enclave(tmp_path, allow_read=[tmp_path / "file"], **ALLOWED) as at_work:
        code = """
            sock = socket.socket(socket.AF_INET, kind)
            sock.bind(("127.0.0.1", 0))
            with open(path, "rb") as file:
                os.dup2(file.fileno(), sock.fileno())
                result = [socket.socket(socket.AF_INET, kind).getsockname()[1], os.read(sock.detach(), 100)]
        """
        assert at_work.run(code, kind=int(kind), path=str(tmp_path / "file")) == [0, b"content"]
