"""The messages that carry a session: as protobuf writes and reads them."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from adyton.communicator_pb2 import Envelope
from adyton.remote import envelopes


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, (1 << 21) - 1, 1 << 21])
def test_a_message_is_protobufs(size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    message = envelopes.pack(data)
    assert message == Envelope(data=data).SerializeToString()
    assert envelopes.unpack(message) == data


@given(st.binary(max_size=40) | st.binary(max_size=300).map(lambda data: b"\x0a" + data))
@example(b"\x0a\x00")
@example(b"\x0a\x81\x00x")  # a length that is longer than it need be
@example(b"\x0a\x01x\x0a\x01y")  # twice: the last one counts
@example(b"\x12\x01z\x0a\x01x")  # with a field that is not known
@example(b"\x0a\x05x")
def test_whatever_comes_is_read_as_protobuf_reads_it(message):
    try:
        expected = Envelope.FromString(message).data
    except DecodeError:
        with pytest.raises(DecodeError):
            envelopes.unpack(message)
    else:
        assert envelopes.unpack(message) == expected
