"""Options of sockets: each that Python names has a row; those of multicast are under the client's policy; interfaces are the enclave's own."""

import errno
import os
import shlex
import socket
import struct
import textwrap
import types

import pytest
from enclave_sockets import EVERYWHERE, PATIENCE, enclave
from hypothesis import given
from hypothesis import strategies as st

from adyton.hostcall.client import socket_options
from adyton.runtime.process.supervisor.loop import Loop
from adyton.runtime.process.supervisor.notifications import Note
from adyton.runtime.process.supervisor.sockets import multicast, options
from adyton.runtime.process.supervisor.sockets.calls import SocketCalls
from adyton.runtime.process.table import number

sandbox = pytest.mark.sandbox

LEVELS = {
    "SO": socket.SOL_SOCKET,
    "TCP": socket.IPPROTO_TCP,
    "UDP": socket.IPPROTO_UDP,
    "IP": socket.IPPROTO_IP,
    "IPV6": socket.IPPROTO_IPV6,
}
# What has such a name and is no option, or one of a level that is not there.
OTHERS = (
    "IPV6_RTHDR_TYPE_0",
    "IP_DEFAULT_MULTICAST_LOOP",
    "IP_DEFAULT_MULTICAST_TTL",
    "IP_MAX_MEMBERSHIPS",
    "SO_J1939_",
    "SO_VM_SOCKETS_",
)
LEVEL_OF = {"SO_ORIGINAL_DST": socket.IPPROTO_IP}  # linux/netfilter_ipv4.h

NAMED = [
    name
    for name in sorted(dir(socket))
    if name.partition("_")[0] in LEVELS and name.isupper() and not name.startswith(OTHERS)
]


@pytest.mark.parametrize("name", NAMED)
def test_each_option_that_python_names_has_a_row(name):
    level = LEVEL_OF.get(name, LEVELS[name.partition("_")[0]])
    known = options.OPTIONS.get((level, getattr(socket, name)))
    assert known is not None, f"{name} is not in the table of options"
    assert name == known.name or name in ("IP_RETOPTS", "IP_RECVRETOPTS", "IP_ORIGDSTADDR")
    assert known.place in ("client", "local", "told", "ignored", "group", "device") or known.refused.reason


def test_the_client_has_a_name_for_each_option_that_is_its_own_and_for_no_other():
    own = {known.name for known in options.OPTIONS.values() if known.place == "client"}
    assert own == socket_options.NAMES
    assert len(own) <= 64  # that a request can carry: sockets.New
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as stream,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams,
    ):
        for name in sorted(own):
            sock = stream if name.startswith("TCP") else datagrams
            assert socket_options.get_option(sock, name)


GROUPS = st.binary(min_size=3, max_size=3).map(lambda rest: bytes([224 + rest[0] % 16]) + rest)


@given(group=GROUPS, own=st.binary(min_size=4, max_size=4), index=st.none() | st.integers(0, 9))
def test_a_group_of_ipv4_is_joined_on_any_interface_only(group, own, index):
    data = group + own + (b"" if index is None else struct.pack("=i", index))
    if any(own) or index:
        with pytest.raises(OSError, match="No such device"):
            multicast.group(data, "inet")
    else:
        assert multicast.group(data, "inet") == socket.inet_ntoa(group)


@given(data=st.binary(max_size=24), family=st.sampled_from(["inet", "inet6"]))
def test_what_is_no_group_is_einval(data, family):
    expected = len(data) >= (8 if family == "inet" else 20) and (
        data[0] >> 4 == 0xE if family == "inet" else data[0] == 0xFF
    )
    if not expected:
        with pytest.raises(OSError, match="Invalid argument"):
            multicast.group(data, family)


@sandbox
def test_options_that_are_refused_say_why(tmp_path, capfd):
    with enclave(tmp_path, **EVERYWHERE) as at_work:
        code = "socket.socket().setsockopt(socket.{}, socket.{}, {})"
        for level, name, value, expected in (
            ("SOL_SOCKET", "SO_BINDTODEVICE", "b'lo'", "EPERM"),
            ("SOL_SOCKET", "SO_MARK", "1", "EPERM"),
            ("IPPROTO_TCP", "TCP_CONGESTION", "b'reno'", "ENOPROTOOPT"),
            ("IPPROTO_IP", "IP_OPTIONS", "b''", "EPERM"),
        ):
            assert at_work.fails(code.format(level, name, value)) == expected
        assert at_work.fails("socket.socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 92)") == "ENOPROTOOPT"
        assert at_work.client.refused["setsockopt SO_BINDTODEVICE"] == 1
    said = capfd.readouterr().err
    assert (
        "setsockopt SO_BINDTODEVICE, which fails there with EPERM: it names an interface of the client's machine"
        in said
    )
    assert "TCP_INFO" not in said


@sandbox
def test_options_of_groups_are_those_of_the_clients_socket(tmp_path):
    with enclave(tmp_path, **EVERYWHERE) as at_work:
        code = """
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            ip = socket.IPPROTO_IP
            result = [sock.getsockopt(ip, socket.IP_MULTICAST_TTL), sock.getsockopt(ip, socket.IP_MULTICAST_LOOP)]
            sock.setsockopt(ip, socket.IP_MULTICAST_TTL, bytes([7]))
            sock.setsockopt(ip, socket.IP_MULTICAST_LOOP, 0)
            sock.setsockopt(ip, socket.IP_MULTICAST_IF, bytes(4))
            result += [sock.getsockopt(ip, socket.IP_MULTICAST_TTL), sock.getsockopt(ip, socket.IP_MULTICAST_LOOP)]
            result += [sock.getsockopt(ip, socket.IP_MULTICAST_IF, 4)]
            stream = socket.socket()
            for options in (
                (sock, ip, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")),
                (sock, ip, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1")),
                (sock, ip, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("10.0.0.1") + bytes(4)),
                (stream, ip, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.1.2.3") + bytes(4)),
                (stream, ip, socket.IP_MULTICAST_TTL, 3),
                (socket.socket(socket.AF_INET6, socket.SOCK_DGRAM), 41, socket.IPV6_MULTICAST_IF, 1),
            ):
                try:
                    options[0].setsockopt(*options[1:])
                except OSError as error:
                    result.append(errno.errorcode[error.errno])
        """
        refused = ["EADDRNOTAVAIL", "ENODEV", "EINVAL", "EPROTO", "EINVAL", "ENODEV"]
        assert at_work.run(code) == [1, 1, 7, 0, bytes(4), *refused]


JOIN = """
    sock = socket.socket(family, socket.SOCK_DGRAM)
    level, join, leave = (41, socket.IPV6_JOIN_GROUP, socket.IPV6_LEAVE_GROUP) if family == socket.AF_INET6 else (
        0, socket.IP_ADD_MEMBERSHIP, socket.IP_DROP_MEMBERSHIP)
    membership = socket.inet_pton(family, group) + bytes(4)
    if late:
        sock.setsockopt(level, join, membership)
    sock.bind(("", port))
    if not late:
        sock.setsockopt(level, join, membership)
"""
FAMILIES = [(socket.AF_INET, "239.255.77.1"), (socket.AF_INET6, "ff15::77:1")]


def reaches_itself(family, group):
    """Whether this machine gets what it sends to a group."""
    with socket.socket(family, socket.SOCK_DGRAM) as taker, socket.socket(family, socket.SOCK_DGRAM) as sender:
        taker.bind(("", 0))
        taker.settimeout(1)
        try:
            socket_options.set_membership(taker, "inet6" if family == socket.AF_INET6 else "inet", group, leaves=False)
            sender.sendto(b"x", (group, taker.getsockname()[1]))
            return taker.recv(10) == b"x"
        except OSError:
            return False


@sandbox
@pytest.mark.parametrize("late", [False, True], ids=["bound before", "bound afterwards"])
@pytest.mark.parametrize(("family", "group"), FAMILIES, ids=["inet", "inet6"])
def test_who_may_listen_at_a_groups_address_gets_what_is_sent_to_it(tmp_path, family, group, late):
    if not reaches_itself(family, group):
        pytest.skip("this machine does not get what it sends to a group")
    bracketed = f"[{group}]:0" if family == socket.AF_INET6 else f"{group}:0"
    rules = {"allow_listen": [bracketed, "0.0.0.0:0", "[::]:0"], "allow_net": []}
    with enclave(tmp_path, **rules) as at_work:
        code = JOIN + "    socket.kept, result = sock, sock.getsockname()[1]\n"
        port = at_work.run(code, family=int(family), group=group, port=0, late=late)
        waiting = at_work.start(
            "socket.kept.settimeout(patience)\nresult = socket.kept.recvfrom(100)[0]", patience=PATIENCE
        )
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"to all", (group, port))
            assert waiting.result(PATIENCE) == b"to all"
        leave = JOIN + "    sock.setsockopt(level, leave, membership)\n    sock.setsockopt(level, leave, membership)\n"
        assert at_work.fails(leave, family=int(family), group=group, port=0, late=late) == "EADDRNOTAVAIL"


@sandbox
@pytest.mark.parametrize(("family", "group"), FAMILIES, ids=["inet", "inet6"])
def test_a_group_that_is_not_allowed_is_denied_and_told(tmp_path, capfd, family, group):
    with enclave(tmp_path, allow_listen=["0.0.0.0:0", "[::]:0"], allow_net=["0.0.0.0/0", "[::/0]"]) as at_work:
        assert at_work.fails(JOIN, family=int(family), group=group, port=0, late=True) == "EACCES"
    subject = f"[{group}]:0" if family == socket.AF_INET6 else f"{group}:0"
    assert f"denied: listen {subject} (add --allow-listen {shlex.quote(subject)})" in capfd.readouterr().err


@sandbox
def test_urgent_data_is_in_line_where_a_program_wants_that(tmp_path):
    """Else it is left out, as by TCP. The program is not told which byte it is."""
    with socket.create_server(("127.0.0.1", 0)) as listener, enclave(tmp_path, **EVERYWHERE) as at_work:
        code = """
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
            sock.connect(("127.0.0.1", port))
            result = b""
            while data := sock.recv(100):
                result += data
        """
        for inline, expected in ((1, b"ab!cd"), (0, b"abcd")):
            taken = at_work.start(code, inline=inline, port=listener.getsockname()[1])
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"ab")
                connection.send(b"!", socket.MSG_OOB)
                connection.sendall(b"cd")
            assert taken.result(PATIENCE) == expected


@sandbox
def test_urgent_data_is_sent_as_such(tmp_path):
    """In the stream's order, whatever waits before it and comes after it."""
    size = 1 << 20
    with socket.create_server(("127.0.0.1", 0)) as listener, enclave(tmp_path, **EVERYWHERE) as at_work:
        code = """
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(b"a" * size)
                sock.sendall(b"ABOR!", socket.MSG_OOB)
                sock.sendall(b"bcd")
        """
        for inline, expected in ((1, b"ABOR!bcd"), (0, b"ABORbcd")):
            sent = at_work.start(code, port=listener.getsockname()[1], size=size)
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
                got = b""
                while data := connection.recv(1 << 16):
                    got += data
            assert got == b"a" * size + expected
            sent.result(PATIENCE)


@sandbox
def test_there_is_no_urgent_data_but_of_streams(tmp_path):
    with enclave(tmp_path, **EVERYWHERE) as at_work:
        for made, expected in (
            ("socket.socketpair()[0]", "ENOTSUP"),
            ("socket.socket(type=socket.SOCK_DGRAM)", "ENOTSUP"),
            ("socket.socket()", "EPIPE"),
            ("socket.socket(fileno=os.open('/dev/null', os.O_RDWR), family=2, type=1, proto=0)", "ENOTSOCK"),
        ):
            assert at_work.fails(f"{made}.send(b'x', socket.MSG_OOB)") == expected
            assert at_work.fails(f"{made}.sendmsg([b'x'], [], socket.MSG_OOB)") in ("ENOTSUP", "ENOTSOCK")


@sandbox
def test_the_list_of_interfaces_cannot_be_changed(tmp_path):
    with enclave(tmp_path, **EVERYWHERE) as at_work:
        code = """
            result = []
            for kind, content in ((16, struct.pack("BxHiII", 0, 0, 1, 0, 1)), (20, struct.pack("BBBBI", 2, 32, 0, 0, 1))):
                with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock:  # RTM_NEWLINK: down; RTM_NEWADDR
                    sock.send(struct.pack("IHHII", 16 + len(content), kind, 5, 1, 0) + content)
                    result.append(errno.errorcode[-struct.unpack_from("i", sock.recv(4096), 16)[0]])
        """
        assert at_work.run(code) == ["EPERM", "EPERM"]
        for protocol in (2, 4, 5, 9, 12, 15, 16, 20):
            assert at_work.fails(f"socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, {protocol})") == "EAFNOSUPPORT"


@pytest.mark.parametrize(("counted", "outcome"), [(True, "the kernel's"), (False, errno.EAFNOSUPPORT)])
def test_there_are_lists_of_interfaces_only_where_what_waits_in_their_sockets_is_counted(counted, outcome):
    outcomes = []
    listener = types.SimpleNamespace(
        go_on=lambda _note: outcomes.append("the kernel's"), answer=lambda _note, error: outcomes.append(error)
    )
    calls = SocketCalls(listener, Loop(), None, 2, "enclave", print, os.close, lists=counted)
    calls.handlers["socket"](Note(1, 2, number("socket"), 0, (socket.AF_NETLINK, socket.SOCK_RAW, 0, 0, 0, 0)))
    assert outcomes == [outcome]
    calls.close()


@sandbox
def test_interfaces_are_the_enclaves_own(tmp_path):
    """Its loopback, and none of the client's, nor of the server's."""
    with enclave(tmp_path, **EVERYWHERE) as at_work:
        code = """
            import fcntl
            result = [socket.if_nametoindex("lo"), socket.if_indextoname(1)]
            for step in (lambda: socket.if_indextoname(2), socket.if_nameindex, lambda: socket.if_nametoindex("eth0")):
                try:
                    result.append(step())
                except OSError as error:
                    result.append(errno.errorcode.get(error.errno, str(error)))
            lists = []
            for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(family, kind) as sock:
                        room = bytearray(4096)
                        import ctypes
                        place = ctypes.addressof(ctypes.c_char.from_buffer(room))
                        answer = fcntl.ioctl(sock, 0x8912, struct.pack("iL", 4096, place))  # SIOCGIFCONF
                        lists.append(struct.unpack("iL", answer)[0])
            names = [line.partition(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]]
            result += [lists, names, open("/proc/net/tcp").read().count("\\n")]
            for family in (socket.AF_INET, socket.AF_INET6):  # as if there were interfaces of both
                found = socket.getaddrinfo("localhost", 80, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
                result.append(found[0][4][0])
        """
        lists = [0, 0, 0, 0, 80, 80]  # stand-ins are made where there is no address; else lo, and lo:0
        found = ["ENXIO", [[1, "lo"]], "no interface with this name"]
        assert at_work.run(code) == [1, "lo", *found, lists, ["lo"], 1, "127.0.0.1", "::1"]


OF_NO_EFFECT = """
    IP_RECVERR = 11  # which not every Python names
    result = []
    with socket.socket() as sock:
        for number in (socket.IP_BIND_ADDRESS_NO_PORT, IP_RECVERR):
            for value in (5, 0, 1):
                result.append(sock.getsockopt(0, number))
                sock.setsockopt(0, number, value)
            result.append(sock.getsockopt(0, number))
"""


@sandbox
def test_an_option_without_effect_is_read_as_it_was_set(tmp_path):
    values = {"socket": socket}
    exec(textwrap.dedent(OF_NO_EFFECT), values)
    with enclave(tmp_path, **EVERYWHERE) as at_work:
        assert at_work.run(OF_NO_EFFECT) == values["result"] == [0, 1, 0, 1] * 2
        assert at_work.fails("socket.socket().getsockopt(socket.IPPROTO_IPV6, 25)") == "ENOPROTOOPT"


INHERITED = """
    IP_RECVERR = 11
    listener = socket.socket()
    listener.setsockopt(1, socket.SO_RCVLOWAT, 3)
    listener.setsockopt(1, socket.SO_RCVTIMEO, struct.pack("ll", 7, 0))
    listener.setsockopt(0, IP_RECVERR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    with listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as taken:
        result = [taken.getsockopt(1, socket.SO_RCVLOWAT), taken.getsockopt(1, socket.SO_RCVTIMEO, 16)]
        result.append(taken.getsockopt(0, IP_RECVERR))
"""


@sandbox
def test_an_accepted_connection_has_the_options_of_its_listener(tmp_path):
    values = {"socket": socket, "struct": struct}
    exec(textwrap.dedent(INHERITED), values)
    with enclave(tmp_path, **EVERYWHERE) as at_work:
        assert at_work.run(INHERITED) == values["result"]
