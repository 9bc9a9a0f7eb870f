"""The client's sockets, asked and told anything in any order: what comes of it is an answer or a broken socket, never the end of all of them."""

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_client_sockets import PATIENCE, STREAM, Connection

from adyton.hostcall import sockets as net

NUMBERS = st.integers(1, 4)
LISTS = {
    "net": ["127.0.0.1", "[::1]", "239.1.2.3", "[::ffff:127.0.0.1]"],
    "listen": ["127.0.0.1:0", "0.0.0.0:0", "[::]:0", "239.1.2.3:0"],
}
OPTIONS = st.sampled_from(
    [
        net.Option("SO_LINGER", [1, 0]),
        net.Option("SO_LINGER", [1]),
        net.Option("SO_KEEPALIVE", [1]),
        net.Option("SO_BROADCAST", [1]),
        net.Option("IP_PKTINFO", [1]),
        net.Option("IP_TTL", [0]),
        net.Option("IPV6_V6ONLY", [1]),
        net.Option("NO_SUCH_OPTION", [1]),
    ]
)
NEW = st.builds(
    net.New,
    st.sampled_from(["inet", "inet", "inet6"]),
    st.sampled_from(["stream", "stream", "datagram"]),
    st.lists(OPTIONS, max_size=2),
)
ACCEPTS = st.lists(st.integers(1, 8), min_size=1, max_size=3)
BYTES = st.sampled_from([b"x", bytes(1000), bytes(60000)])
ANCILLARY = st.sampled_from([None, net.Ancillary("127.0.0.1", 1, 1), net.Ancillary("::1")])


def steps(peers):
    """Requests and messages that name the same few sockets, and these peers."""
    addresses = st.sampled_from(peers)
    return st.lists(
        st.one_of(
            st.builds(net.Bind, NUMBERS, NEW, addresses),
            *2 * [st.builds(net.Connect, NUMBERS, NEW, addresses)],
            st.builds(net.Reach, NUMBERS, NEW, addresses),
            st.builds(net.Listen, NUMBERS, NEW, st.integers(0, 5), ACCEPTS),
            st.builds(net.Join, NUMBERS, NEW, st.sampled_from(["239.1.2.3", "127.0.0.1", "ff02::1"]), st.booleans()),
            st.builds(net.GetOption, st.none() | NUMBERS, NEW, st.sampled_from(["SO_LINGER", "TCP_NODELAY", "NONE"])),
            st.builds(net.Send, NUMBERS, BYTES),
            st.builds(net.SendUrgent, NUMBERS, st.just(b"!")),
            st.builds(net.SendTo, NUMBERS, st.none() | addresses, BYTES, ANCILLARY),
            st.builds(net.ShutWrite, NUMBERS),
            st.builds(net.Credit, NUMBERS, st.sampled_from([1, 1 << 20, (1 << 31) - 1])),
            st.builds(net.Blocked, NUMBERS),
            st.builds(net.Accepts, NUMBERS, ACCEPTS),
            st.builds(net.SetOption, NUMBERS, OPTIONS),
            st.builds(net.CloseSocket, NUMBERS, st.booleans()),
        ),
        min_size=20,
        max_size=40,
    )


@pytest.fixture(scope="module")
def peers():
    """Of each kind: who listens, who does not, who is no peer of a stream, who takes datagrams, who is nobody."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket() as closed,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        for each in (closed, datagrams):
            each.bind(("127.0.0.1", 0))
        taken = [net.Endpoint(*each.getsockname()) for each in (listener, closed, datagrams)]
        mapped = net.Endpoint("::ffff:127.0.0.1", taken[0].port)
        yield [*taken, mapped, *(net.Endpoint(host, 0) for host in ("127.0.0.1", "::1", "0.0.0.0", "239.1.2.3"))]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_requests_and_messages_are_the_end_of_no_other_socket(peers, data):
    taken = data.draw(steps(peers))
    connection = Connection(**LISTS)
    try:
        for each in taken:
            if isinstance(each, net.Request):
                connection.sockets.request(2, each)
            else:
                connection.sockets.message(each)
        connection.sockets.request(1, net.GetOption(None, STREAM, "TCP_NODELAY"))
        while (got := connection.results.get(timeout=PATIENCE))[0] == 2:
            pass
        assert got == (1, net.OptionValue([0]))  # 0: a defect, which is the end of all
    finally:
        connection.sockets.close()
