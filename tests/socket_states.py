"""What a socket does in each state that it can be in: the same program for this machine and for an enclave, and the peers that it needs.

`observe` puts a fresh socket into a state for each operation, does that, and says what came of it; then what the socket has to say of
itself. Sockets are non-blocking, so that nothing waits; a state is entered when the socket shows it.
"""

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import time

PATIENCE = 30.0  # seconds until a state counts as not entered
SHOWN = {
    "IN": select.POLLIN,
    "PRI": select.POLLPRI,
    "OUT": select.POLLOUT,
    "ERR": select.POLLERR,
    "HUP": select.POLLHUP,
    "RDHUP": select.POLLRDHUP,
}
ALL = select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDHUP
NOW = socket.MSG_DONTWAIT
SIOCATMARK = 0x8905


def _events(sock, wanted=ALL):
    poller = select.poll()
    poller.register(sock, wanted)
    return dict(poller.poll(0)).get(sock.fileno(), 0)


def _named(events):
    return "|".join(name for name, bit in SHOWN.items() if events & bit) or "-"


def _until(sock, events, *, every=True):
    """Wait until it shows these, or one of them."""
    ends = time.monotonic() + PATIENCE
    while not (shown := _events(sock) & events) or (every and shown != events):
        poller = select.poll()
        poller.register(sock, events & ~shown)
        poller.poll(20)
        if time.monotonic() > ends:
            raise TimeoutError(f"{_named(_events(sock))}, not {_named(events)}")


# -- states -----------------------------------------------------------------------------------------------------------------


def _new(kind=socket.SOCK_STREAM):
    sock = socket.socket(socket.AF_INET, kind)
    sock.setblocking(False)
    return sock


def _bound(kind=socket.SOCK_STREAM):
    sock = _new(kind)
    sock.bind(("127.0.0.1", 0))
    return sock


def _listening():
    sock = _bound()
    sock.listen(8)
    return sock


def _pending():
    sock = _listening()
    others.append(_connected(sock.getsockname()[1]))
    _until(sock, select.POLLIN)
    return sock


def _started(port):
    sock = _new()
    sock.connect_ex(("127.0.0.1", port))
    return sock


def _refused(port):
    sock = _started(port)
    _until(sock, select.POLLERR | select.POLLOUT)
    return sock


def _refused_and_told(port):
    sock = _refused(port)
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return sock


def _refused_in_connect(port):
    sock = _new()
    sock.settimeout(PATIENCE)
    sock.connect_ex(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


def _refused_while_it_waited(port):
    sock = _new()
    sock.setblocking(True)
    sock.connect_ex(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


def _connected(port, *shown):
    sock = _new()
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", port))
    sock.send(b"!")  # the peer waits for that
    sock.setblocking(False)
    _until(sock, sum(shown, select.POLLOUT))
    return sock


def _after(sock, step):
    try:
        step(sock)
    except OSError:
        pass
    return sock


def _data_and_reset(port):
    sock = _connected(port, IN)
    sock.send(b"!")
    _until(sock, ERR | HUP)
    return sock


def _udp_refused(port):
    sock = _udp_connected(port)
    sock.send(b"x")
    _until(sock, select.POLLIN | select.POLLERR, every=False)
    return sock


def _udp_connected(port):
    sock = _new(socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", port))
    return sock


def _udp_with_data():
    sock = _bound(socket.SOCK_DGRAM)
    other = _new(socket.SOCK_DGRAM)
    other.sendto(b"hello", sock.getsockname())
    others.append(other)
    _until(sock, select.POLLIN)
    return sock


others = []  # sockets that a state needs beside its own

IN, RDHUP, HUP, ERR = select.POLLIN, select.POLLRDHUP, select.POLLHUP, select.POLLERR

STREAM_STATES = {
    "new": lambda ports: _new(),
    "bound": lambda ports: _bound(),
    "listening": lambda ports: _listening(),
    "a connection to accept": lambda ports: _pending(),
    "connecting": lambda ports: _started(ports["full"]),
    "refused": lambda ports: _refused(ports["closed"]),
    "refused, and told by SO_ERROR": lambda ports: _refused_and_told(ports["closed"]),
    "refused, and told by connect": lambda ports: _refused_in_connect(ports["closed"]),
    "refused, while connect waited": lambda ports: _refused_while_it_waited(ports["closed"]),
    "connected": lambda ports: _connected(ports["holds"]),
    "connected, data": lambda ports: _connected(ports["data"], IN),
    "shut for writing": lambda ports: _after(_connected(ports["holds"]), lambda sock: sock.shutdown(socket.SHUT_WR)),
    "shut for reading": lambda ports: _after(_connected(ports["holds"]), lambda sock: sock.shutdown(socket.SHUT_RD)),
    "shut for reading, data": lambda ports: _after(
        _connected(ports["data"], IN), lambda sock: sock.shutdown(socket.SHUT_RD)
    ),
    "shut both ways": lambda ports: _after(_connected(ports["holds"]), lambda sock: sock.shutdown(socket.SHUT_RDWR)),
    "shut by the peer": lambda ports: _connected(ports["shuts"], IN, RDHUP),
    "data, shut by the peer": lambda ports: _connected(ports["data, shuts"], IN, RDHUP),
    "shut by both": lambda ports: _after(
        _connected(ports["shuts"], IN, RDHUP), lambda sock: (sock.shutdown(socket.SHUT_WR), _until(sock, HUP))
    ),
    "closed by the peer": lambda ports: _connected(ports["closes"], IN, RDHUP),
    "reset": lambda ports: _connected(ports["resets"], IN, ERR, HUP, RDHUP),
    "data, reset": lambda ports: _data_and_reset(ports["data, resets"]),
    "reset, and told by recv": lambda ports: _after(
        _connected(ports["resets"], IN, ERR, HUP, RDHUP), lambda sock: sock.recv(10)
    ),
    "reset, and told by SO_ERROR": lambda ports: _after(
        _connected(ports["resets"], IN, ERR, HUP, RDHUP),
        lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
    ),
}

DATAGRAM_STATES = {
    "udp, new": lambda ports: _new(socket.SOCK_DGRAM),
    "udp, bound": lambda ports: _bound(socket.SOCK_DGRAM),
    "udp, connected": lambda ports: _udp_connected(ports["datagrams"]),
    "udp, data": lambda ports: _udp_with_data(),
    "udp, refused": lambda ports: _udp_refused(ports["no datagrams"]),
    "udp, shut": lambda ports: _after(_udp_connected(ports["datagrams"]), lambda sock: sock.shutdown(socket.SHUT_RDWR)),
}

# -- operations -------------------------------------------------------------------------------------------------------------


def _number(sock, request):
    return struct.unpack("i", fcntl.ioctl(sock, request, bytes(4)))[0]


def _accept(sock):
    accepted, _ = sock.accept()
    with accepted:
        return "a connection"


def _selected(sock):
    return [bool(each) for each in select.select([sock], [sock], [sock], 0)]


def _polled_by_epoll(sock):
    with select.epoll() as epoll:
        epoll.register(sock, ALL)
        return _named(dict(epoll.poll(0)).get(sock.fileno(), 0))


def _into(sock, flags=0):
    room = bytearray(10)
    return bytes(room[: sock.recv_into(room, 0, NOW | flags)])


OPERATIONS = {
    "poll": lambda sock, ports: _named(_events(sock)),
    "epoll": lambda sock, ports: _polled_by_epoll(sock),
    "select": lambda sock, ports: _selected(sock),
    "SO_ERROR": lambda sock, ports: errno.errorcode.get(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0),
    "SO_ACCEPTCONN": lambda sock, ports: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
    "getsockname": lambda sock, ports: [sock.getsockname()[0], sock.getsockname()[1] > 0],
    "getpeername": lambda sock, ports: sock.getpeername()[0],
    "FIONREAD": lambda sock, ports: _number(sock, termios.FIONREAD),
    "SIOCOUTQ": lambda sock, ports: _number(sock, termios.TIOCOUTQ),
    "SIOCATMARK": lambda sock, ports: _number(sock, SIOCATMARK),
    "recv": lambda sock, ports: sock.recv(10, NOW),
    "recv of 1": lambda sock, ports: sock.recv(1, NOW),
    "recv of 0": lambda sock, ports: sock.recv(0, NOW),
    "recv peeking": lambda sock, ports: sock.recv(10, NOW | socket.MSG_PEEK),
    "recv of all": lambda sock, ports: sock.recv(10, NOW | socket.MSG_WAITALL),
    "recv truncating": lambda sock, ports: len(sock.recv(2, NOW | socket.MSG_TRUNC)),
    "recv of errors": lambda sock, ports: sock.recv(10, NOW | socket.MSG_ERRQUEUE),
    "recv_into": lambda sock, ports: _into(sock),
    "recvfrom": lambda sock, ports: sock.recvfrom(10, NOW)[0],
    "recvmsg": lambda sock, ports: sock.recvmsg(10, 0, NOW)[0],
    "read": lambda sock, ports: os.read(sock.fileno(), 10),
    "send": lambda sock, ports: sock.send(b"x", NOW),
    "send of nothing": lambda sock, ports: sock.send(b"", NOW),
    "send without a signal": lambda sock, ports: sock.send(b"x", NOW | socket.MSG_NOSIGNAL),
    "sendto": lambda sock, ports: sock.sendto(b"x", NOW, ("127.0.0.1", ports["datagrams"])),
    "sendmsg": lambda sock, ports: sock.sendmsg([b"x"], [], NOW),
    "write": lambda sock, ports: os.write(sock.fileno(), b"x"),
    "shutdown for reading": lambda sock, ports: sock.shutdown(socket.SHUT_RD),
    "shutdown for writing": lambda sock, ports: sock.shutdown(socket.SHUT_WR),
    "shutdown": lambda sock, ports: sock.shutdown(socket.SHUT_RDWR),
    "accept": lambda sock, ports: _accept(sock),
    "listen": lambda sock, ports: sock.listen(),
    "bind": lambda sock, ports: sock.bind(("127.0.0.1", 0)),
    "connect": lambda sock, ports: sock.connect(
        ("127.0.0.1", ports["full"])
    ),  # which is not over when it is done again
}


def _outcome(operation, sock, ports):
    try:
        result = operation(sock, ports)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    return str(result)


def _observed(state, operation, ports):
    signals = []
    before = signal.signal(signal.SIGPIPE, lambda *_: signals.append(1))
    try:
        with state(ports) as sock:
            first = _outcome(operation, sock, ports)
            second = _outcome(operation, sock, ports)
            after = _outcome(OPERATIONS["SO_ERROR"], sock, ports)
    except OSError as error:
        return f"the state was not entered: {error!r}"
    finally:
        signal.signal(signal.SIGPIPE, before)
        for each in others:
            each.close()
        others.clear()
    return f"{first}; {second}; SO_ERROR {after}" + "; SIGPIPE" * bool(signals)


def observe(ports: dict[str, int], states: list[str]) -> dict[str, str]:
    """'state: operation' → what came of it, done twice, and of SO_ERROR afterwards."""
    known = STREAM_STATES | DATAGRAM_STATES
    return {
        f"{state}: {name}": _observed(known[state], operation, ports)
        for state in states
        for name, operation in OPERATIONS.items()
    }
