"""How servers are named, and what is wrong with a name."""

from __future__ import annotations

import pytest

from adyton.errors import UsageError
from adyton.remote.address import TLS, Address
from adyton.remote.connection import open_channel


@pytest.mark.parametrize(
    ("text", "target", "secure"),
    [
        ("grpc://tee.example", "tee.example:4321", False),
        ("grpcs://tee.example", "tee.example:4321", True),
        ("grpcs://tee.example:99", "tee.example:99", True),
        ("grpc://[::1]:5", "[::1]:5", False),
        ("127.0.0.1:80", "127.0.0.1:80", False),
        ("localhost:80", "localhost:80", False),
        ("[::1]:80", "[::1]:80", False),
        ("tee.example:80", "tee.example:80", True),
        ("localhost.evil.example:80", "localhost.evil.example:80", True),
        ("127.0.0.1.evil.example:80", "127.0.0.1.evil.example:80", True),
        ("unix:/run/adyton.sock", "unix:/run/adyton.sock", False),
    ],
)
def test_a_servers_address(text, target, secure):
    address = Address.parse(text)
    assert (address.target, address.secure) == (target, secure)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://x",
        "grpc://",
        "grpc://h:port",
        "grpc://h:99999",
        "grpc://h:0",
        "grpcs://unix:/s",
        "grpc://h/path",
        "grpc://u@h",
        "unix:",
        "grpc://h?x",
    ],
)
def test_no_address(text):
    with pytest.raises(UsageError):
        Address.parse(text)


def test_tls_files_must_fit_together(tmp_path):
    with pytest.raises(UsageError, match="without TLS"):
        open_channel(Address.parse("grpc://h"), TLS(ca="x"))
    with pytest.raises(UsageError, match="leave them out"):
        open_channel(Address.parse("unix:/s"), TLS(ca="x"))
    with pytest.raises(UsageError, match=r"TLS\(ca=3\): give the path of a file"):
        TLS(ca=3)
    assert TLS(ca=tmp_path).ca == str(tmp_path)
    with pytest.raises(UsageError, match="both"):
        open_channel(Address.parse("grpcs://h"), TLS(cert="x"))
    with pytest.raises(UsageError, match="cannot read"):
        open_channel(Address.parse("grpcs://h"), TLS(ca=str(tmp_path / "none")))
