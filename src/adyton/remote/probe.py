"""A look at a server that gRPC could not connect to, for what gRPC does not say: what answers there, and which certificate it shows.

It shows nothing of ours, neither certificate nor token, and trusts nothing that it sees: what it finds goes into an error's text only.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from dataclasses import dataclass

from adyton.remote.address import Address
from adyton.remote.certificates import Shown

SECONDS = 4.0  # for all of it
BRIEF_SECONDS = 0.6  # where gRPC has waited already for a peer that says nothing
_ADDRESSES = 4  # of a name that are tried


@dataclass(frozen=True)
class Seen:
    """What answers at an address. `certificate`: of a server with TLS, or None if it cannot be read."""

    connected: bool = False
    silent: bool = False  # not connected, and not refused either: nothing came back
    tls: bool = False
    http2: bool = False  # it agreed to HTTP/2, which gRPC needs
    hung_up: bool = False  # it took our handshake without a client certificate, and then ended the connection
    certificate: Shown | None = None


def look(address: Address, seconds: float = SECONDS) -> Seen:
    """Connect, and try a TLS handshake; what was seen until something failed. Raises nothing."""
    until = time.monotonic() + seconds
    name, _, port = address.target.rpartition(":")
    name = name.strip("[]")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        plain = _connected(name, int(port), until)
    except TimeoutError:
        return Seen(silent=True)
    except (OSError, ValueError):  # a ValueError: a name that cannot be one
        return Seen()
    with contextlib.closing(plain):
        plain.settimeout(max(0.1, until - time.monotonic()))
        try:
            with context.wrap_socket(plain, server_hostname=name) as secured:
                secured.settimeout(max(0.1, until - time.monotonic()))
                http2 = secured.selected_alpn_protocol() == "h2"
                certificate = Shown.read(secured.getpeercert(binary_form=True) or b"")
                return Seen(
                    connected=True, tls=True, http2=http2, certificate=certificate, hung_up=http2 and _hung_up(secured)
                )
        except (OSError, ValueError):  # a ValueError: it was gone before the handshake
            return Seen(connected=True)


def _connected(name: str, port: int, until: float) -> socket.socket:
    """To the first of the name's addresses that takes it; a name may have any number of them. TimeoutError: the last does not answer. OSError, ValueError."""
    addresses = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[:_ADDRESSES]
    failed = OSError("the name has no address")
    for number, (*_, (host, *_)) in enumerate(addresses):
        left = (until - time.monotonic()) / (len(addresses) - number)
        try:
            return socket.create_connection((str(host), port), max(0.1, left))
        except OSError as error:
            failed = error
    raise failed


def _hung_up(secured: ssl.SSLSocket) -> bool:
    """In TLS 1.3 a server judges a client's certificate, or that there is none, after the client's handshake is done."""
    try:
        return not secured.recv(1)  # an HTTP/2 server speaks first
    except TimeoutError:
        return False
    except OSError:  # an alert
        return True
