"""sendmsg and recvmsg on datagram sockets in an enclave: addresses, buffers, ancillary data; and the bytes that say so."""

import errno
import socket
import struct

import pytest
from enclave_sockets import EVERYWHERE, enclave
from hypothesis import given
from hypothesis import strategies as st

from adyton.hostcall.sockets import Ancillary
from adyton.runtime.process.supervisor.sockets import messages

# -- the bytes --------------------------------------------------------------------------------------------------------------

ASKED = ["IP_PKTINFO", "IP_RECVTTL", "IP_RECVTOS", "IPV6_RECVPKTINFO", "IPV6_RECVHOPLIMIT", "IPV6_RECVTCLASS"]
byte = st.none() | st.integers(0, 255)
families = st.sampled_from(["inet", "inet6"])


def ancillary(family, least_hops=0):
    number = {"inet": (socket.AF_INET, 4), "inet6": (socket.AF_INET6, 16)}[family]
    host = (
        st.binary(min_size=number[1], max_size=number[1]).filter(any).map(lambda raw: socket.inet_ntop(number[0], raw))
    )
    return st.builds(Ancillary, st.none() | host, st.none() | st.integers(least_hops, 255), byte)


@given(st.data(), families)
def test_what_is_told_with_a_datagram_can_be_sent_with_one(data, family):
    told = data.draw(ancillary(family, least_hops=1))
    written, cut = messages.control(told, family, ASKED, 1000)
    assert not cut
    assert messages.ancillary(written, family) == (told if told != Ancillary() else None)


@given(st.data(), families, st.integers(0, 100))
def test_what_is_told_fits_where_it_goes_and_says_if_it_was_cut(data, family, room):
    told = data.draw(ancillary(family))
    whole, _ = messages.control(told, family, ASKED, 1000)
    written, cut = messages.control(told, family, ASKED, room)
    assert len(written) <= room
    assert cut or (whole.startswith(written) and not any(whole[len(written) :]) and len(whole) - len(written) < 8)
    assert room < len(whole) or not cut


def errors_of(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return None


@given(st.binary(max_size=200), families)
def test_any_bytes_are_ancillary_data_or_an_error_of_the_system(control, family):
    assert errors_of(messages.ancillary, control, family) in (None, errno.EINVAL, errno.ENODEV)


@given(st.binary(min_size=messages.HEADER_SIZE, max_size=messages.HEADER_SIZE))
def test_any_bytes_are_a_header_or_an_error_of_the_system(data):
    assert errors_of(messages.header, data) in (None, errno.EINVAL, errno.EMSGSIZE)


def item(level, kind, data):
    return struct.pack("=Qii", 16 + len(data), level, kind) + data + bytes(-len(data) % 8)


@pytest.mark.parametrize(
    ("control", "family", "error"),
    [
        (item(0, 8, struct.pack("=i4s4s", 7, bytes(4), bytes(4))), "inet", errno.ENODEV),  # an interface
        (item(41, 50, bytes(16) + struct.pack("=i", 7)), "inet6", errno.ENODEV),
        (item(0, 2, struct.pack("=i", 0)), "inet", errno.EINVAL),  # no hops
        (item(0, 2, b"\1"), "inet", errno.EINVAL),
        (item(0, 1, struct.pack("=i", 256)), "inet", errno.EINVAL),
        (item(41, 52, struct.pack("=i", -2)), "inet6", errno.EINVAL),
        (item(41, 99, b""), "inet6", errno.EINVAL),
        (item(1, 99, b""), "inet", errno.EINVAL),
        (struct.pack("=Qii", 15, 0, 2), "inet", errno.EINVAL),  # shorter than itself
        (struct.pack("=Qii", 17, 0, 2), "inet", errno.EINVAL),  # longer than what there is
        (struct.pack("=Qii", 1 << 63, 0, 2), "inet", errno.EINVAL),
    ],
)
def test_ancillary_data_that_linux_refuses(control, family, error):
    with pytest.raises(OSError) as raised:
        messages.ancillary(control, family)
    assert raised.value.errno == error


def test_ancillary_data_of_others_is_left_out():
    other = item(41, 52, struct.pack("=i", 5)) + item(1, 1, bytes(4)) + item(99, 1, b"")
    assert messages.ancillary(other, "inet") is None
    assert messages.ancillary(item(41, 52, struct.pack("=i", -1)), "inet6") is None  # the default
    assert messages.ancillary(item(0, 1, b"\x20"), "inet") == Ancillary(traffic_class=0x20)


# -- in an enclave ----------------------------------------------------------------------------------------------------------

sandbox = pytest.mark.sandbox
FAMILIES = pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["inet", "inet6"]
)


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    with enclave(tmp_path_factory.mktemp("messages"), **EVERYWHERE) as found:
        yield found


PAIR = """
    a, b = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
    for each in (a, b):
        each.bind((host, 0))
    here, there = a.getsockname(), b.getsockname()
"""


@sandbox
@FAMILIES
def test_messages_have_addresses_and_many_buffers(at_work, family, host):
    code = (
        PAIR
        + """
    result = [a.sendmsg([b"one", b"", b"two"], [], 0, there)]
    buffers = [bytearray(2), bytearray(0), bytearray(100)]
    size, control, flags, peer = b.recvmsg_into(buffers)
    result += [bytes(buffers[0]), bytes(buffers[2][:4]), size, control, flags, peer == here]
    a.sendmsg([b"first"], [], 0, there)
    a.sendmsg([], [], 0, there)
    result += b.recvmsg(3, 0, socket.MSG_PEEK)[:3]
    result += b.recvmsg(3, 0, socket.MSG_TRUNC)[:3]
    data, control, flags, peer = b.recvmsg(10)
    result += [data, flags, peer == here]
    b.connect(here)
    b.sendmsg([b"back"])
    result += [a.recv(10)]
    """
    )
    assert at_work.run(code, family=int(family), host=host) == [
        *[6, b"on", b"etwo", 6, [], 0, True],
        *[b"fir", [], socket.MSG_TRUNC],
        *[b"fir", [], socket.MSG_TRUNC],
        *[b"", 0, True],
        b"back",
    ]


@sandbox
def test_hops_traffic_classes_and_own_addresses_go_and_come_with_datagrams(at_work):
    code = (
        PAIR
        + """
    if family == socket.AF_INET:
        level, (info, hops, kind), on = 0, (8, 2, 1), (8, 12, 13)
        own = struct.pack("=i4s4s", 0, socket.inet_aton(host), bytes(4))
        expected = [(0, 8, struct.pack("=i4s4s", 0, *[socket.inet_aton(host)] * 2)), (0, 2, struct.pack("i", 5)), (0, 1, b"\\x20")]
    else:
        level, (info, hops, kind), on = 41, (50, 52, 67), (49, 51, 66)
        own = socket.inet_pton(family, host) + struct.pack("=i", 0)
        expected = [(41, 50, own), (41, 52, struct.pack("i", 5)), (41, 67, struct.pack("i", 0x20))]
    for each in on:
        b.setsockopt(level, each, 1)
    control = [(level, info, own), (level, hops, struct.pack("i", 5)), (level, kind, struct.pack("i", 0x20))]
    a.sendmsg([b"x"], control, 0, there)
    data, got, flags, peer = b.recvmsg(10, 1000)
    result = [data, got == expected or got, flags, peer == here]
    a.sendmsg([b"x"], control, 0, there)
    room = socket.CMSG_SPACE(len(expected[0][2])) + socket.CMSG_LEN(3)
    data, got, flags, _ = b.recvmsg(10, room)
    result += [data, got == [expected[0], (*expected[1][:2], expected[1][2][:3])] or got, flags]
    b.setsockopt(level, on[0], 0)
    b.setsockopt(level, on[1], 0)
    a.sendto(b"y", there)
    data, got, flags, _ = b.recvmsg(10, 1000)
    result += [data, [each[:2] for each in got] == [(level, kind)], flags]
    """
    )
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        found = at_work.run(code, family=int(family), host=host)
        assert found == [b"x", True, 0, True, b"x", True, socket.MSG_CTRUNC, b"y", True, 0]


@sandbox
def test_several_messages_in_one_call_are_done_one_at_a_time(at_work):
    code = (
        PAIR
        + """
    import ctypes
    class Buffer(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
    class Message(ctypes.Structure):
        _fields_ = [("name", ctypes.c_void_p), ("name_size", ctypes.c_uint), ("vector", ctypes.c_void_p), ("count", ctypes.c_size_t),
                    ("control", ctypes.c_void_p), ("control_size", ctypes.c_size_t), ("flags", ctypes.c_int), ("length", ctypes.c_uint)]
    class Messages(ctypes.Structure):
        _fields_ = [("header", ctypes.c_byte * 56), ("length", ctypes.c_uint)]
    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("=H", family) + there[1].to_bytes(2, "big") + socket.inet_aton(host) + bytes(8)
    name, data = ctypes.create_string_buffer(address, 16), ctypes.create_string_buffer(b"hello", 100)
    buffer = Buffer(ctypes.addressof(data), 5)
    several = (Messages * 3)()
    for each in several:
        header = Message.from_buffer(each)
        header.name, header.name_size, header.vector, header.count = ctypes.addressof(name), 16, ctypes.addressof(buffer), 1
    result = [libc.sendmmsg(a.fileno(), several, 3, 0), several[0].length, libc.sendmmsg(a.fileno(), several, 0, 0)]
    buffer.size = 100
    result += [libc.recvmmsg(b.fileno(), several, 3, 0, None), several[0].length, data.raw[:5]]
    result += [int.from_bytes(name.raw[2:4], "big") == here[1], libc.recvmmsg(b.fileno(), several, 3, socket.MSG_DONTWAIT, None)]
    """
    )
    found = at_work.run(code, family=int(socket.AF_INET), host="127.0.0.1")
    assert found == [1, 5, 0, 1, 5, b"hello", True, -1]


@sandbox
def test_a_program_with_more_datagram_sockets_than_there_are_descriptors_for_has_others(at_work):
    code = """
        made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(140)]
        others = [each for each in made if each.fileno() < 896]
        made[0].bind(("127.0.0.1", 0))
        others[0].sendto(b"x", made[0].getsockname())
        result = [len({each.fileno() for each in made}), len(others), made[0].recvmsg(10)[0]]
        for each in made:
            each.close()
    """
    count, others, data = at_work.run(code)
    assert (count, data) == (140, b"x")
    assert others >= 12


@sandbox
def test_a_program_whose_limit_of_descriptors_is_low_has_datagram_sockets_all_the_same(at_work):
    code = """
        import resource
        pid = os.fork()
        if pid == 0:
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            os._exit(7 if sock.fileno() < 200 else 1)
        result = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    """
    assert at_work.run(code) == 7


@sandbox
def test_a_socket_of_another_kind_under_such_a_descriptor_is_the_kernels(at_work):
    code = """
        import array
        pair = socket.socketpair()
        high = [socket.socket(fileno=os.dup2(each.fileno(), number)) for each, number in zip(pair, (1000, 1001))]
        read, write = os.pipe()
        high[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write]))])
        data, [(_, _, passed)], _, _ = high[1].recvmsg(10, 100)
        os.write(struct.unpack("i", passed)[0], b"y")
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as one:
            high.append(socket.socket(fileno=os.dup2(one.fileno(), 1002)))
            other, _ = listener.accept()
        sent = [each.send(bytes(70000)) for each in (high[0], high[2])]  # more than a datagram
        result = [data, os.read(read, 10), sent, other.recv(1)]
    """
    assert at_work.run(code) == [b"x", b"y", [70000, 70000], b"\0"]


COPIES = {
    "socket.dup": "sock.dup()",
    "os.dup": "socket.socket(fileno=os.dup(sock.fileno()))",
    "fromfd": "socket.fromfd(sock.fileno(), sock.family, sock.type)",
    "dup": "socket.socket(fileno=__import__('ctypes').CDLL(None).dup(sock.fileno()))",
    "F_DUPFD": "socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD, 1000))",
    "a copy of a copy": "sock.dup().dup()",
}


@sandbox
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_descriptor_has_addresses_too(at_work, copy):
    code = f"""
        import fcntl
        sock, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        sock.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        copied = {copy}
        copied.sendmsg([b"to ", b"it"], [], 0, other.getsockname())
        data, peer = other.recvfrom(100)
        other.sendmsg([b"back"], [], 0, peer)
        answer, _, _, sender = copied.recvmsg(100)
        result = [data, peer == sock.getsockname(), answer, sender == other.getsockname(), os.get_inheritable(copied.fileno())]
    """
    inherited = copy in (COPIES["dup"], COPIES["F_DUPFD"])
    assert at_work.run(code) == [b"to it", True, b"back", True, inherited]


@sandbox
def test_other_uses_of_descriptors_are_the_kernels(at_work):
    """Of those that a datagram socket may have: files, connections, commands, minima that are too high; what is not open."""
    code = """
        import fcntl, resource
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        read, write = os.pipe()
        free = 896 + (sock.fileno() - 832) % 128  # another of those numbers
        os.dup2(write, free)
        os.write(os.dup(free), b"x")
        below = os.dup(free) < 896
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))  # an ordinary user's usual one is 1024
        above = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 1024)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        flags = [fcntl.fcntl(sock, fcntl.F_GETFD), fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK]
        errors = []
        os.close(free)
        for step in (lambda: os.dup(free), lambda: fcntl.fcntl(free, fcntl.F_GETFL), lambda: fcntl.fcntl(sock, fcntl.F_DUPFD, -1)):
            try:
                step()
            except OSError as error:
                errors.append(errno.errorcode[error.errno])
        result = [os.read(read, 9), below, above >= 1024, *flags, errors]
    """
    assert at_work.run(code) == [b"x", True, True, 1, 0, ["EBADF", "EBADF", "EINVAL"]]
