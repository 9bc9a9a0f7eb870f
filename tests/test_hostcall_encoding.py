"""Host calls as they are sent: in parts or whole, the bytes are those of MessagePack."""

import msgspec
import pytest

from adyton.hostcall import abi
from adyton.hostcall.encoding import encode


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65535, 65536, abi.MAX_BLOCK])
@pytest.mark.parametrize("make", [abi.Data, lambda data: abi.Write(3, 1 << 40, data)])
def test_content_is_encoded_as_the_message_says(make, size):
    message = make(bytes(range(256)) * (size // 256) + bytes(size % 256))
    parts = encode(message)
    whole = b"".join(parts) if isinstance(parts, tuple) else parts
    assert whole == msgspec.msgpack.encode(message)


def test_large_content_is_not_copied():
    data = bytes(1 << 16)
    assert any(part is data for part in encode(abi.Data(data)))


def test_other_messages_are_whole():
    assert encode(abi.Done()) == msgspec.msgpack.encode(abi.Done())
