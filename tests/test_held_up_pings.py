"""A connection is not given up because pings that were held up on the way arrive together."""

import socket
import struct

from adyton.remote.connection import open_server

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113
SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1


def frame(kind, payload=b"", flags=0):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + bytes(4) + payload


def frames(stream):
    """Type, flags and payload of each frame that comes."""
    while header := stream.read(9):
        yield header[3], header[4], stream.read(int.from_bytes(header[:3], "big"))


def test_many_pings_at_once_are_all_answered():
    server, port = open_server([], "127.0.0.1:0", None, 2)
    server.start()
    numbers = [struct.pack(">Q", number) for number in range(20)]
    try:
        with socket.create_connection(("127.0.0.1", port), 60) as sock, sock.makefile("rb") as stream:
            sock.sendall(PREFACE + frame(SETTINGS))
            answered = []
            for number in numbers:
                sock.sendall(frame(PING, number))
                for kind, flags, payload in frames(stream):
                    assert kind != GOAWAY, payload
                    if kind == PING and flags & ACK:
                        answered.append(payload)
                        break
            assert answered == numbers
    finally:
        server.stop(None).wait(60)
