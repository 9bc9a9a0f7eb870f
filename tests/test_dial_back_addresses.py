"""Where a client may wait for its proxy server, where that dials, and where a provision server lets itself be sent."""

from __future__ import annotations

import ipaddress
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import UnreachableError, UsageError
from adyton.provision.client import RemoteProvision
from adyton.remote.dial_address import ListenAddress, host_address, target_for


@pytest.mark.parametrize(
    ("text", "at", "here"),
    [
        ("127.0.0.1:0", "127.0.0.1:7", "127.0.0.1:7"),
        ("localhost:0", "127.0.0.1:7", "127.0.0.1:7"),
        ("[::1]:0", "[::1]:7", "[::1]:7"),
        ("[::]:0", "[::]:7", "127.0.0.1:7"),
        ("0.0.0.0:0", "0.0.0.0:7", "127.0.0.1:7"),
        ("[2001:db8::5]:80", "[2001:db8::5]:7", "[2001:db8::5]:7"),
        ("[fe80::1%eth0]:80", "[fe80::1%eth0]:7", "[fe80::1%25eth0]:7"),
        ("unix:/run/x.sock", "unix:/run/x.sock", "unix:/run/x.sock"),
    ],
)
def test_where_a_client_waits(text, at, here):
    got = ListenAddress.parse(text).at(7)
    assert (str(got), got.here) == (at, here)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "IP:PORT"),
        ("7000", "IP:PORT"),
        ("::1:7000", "brackets"),
        ("2001:db8::5:80", "brackets"),
        ("[::1]", "IP:PORT"),
        ("[::1]:x", "IP:PORT"),
        ("[127.0.0.1]:80", "brackets"),
        ("127.0.0.1:65536", "IP:PORT"),
        ("127.0.0.1:-1", "IP:PORT"),
        ("client.example:7000", "no IP address"),
        ("grpc://127.0.0.1:1", "IP:PORT"),
        ("127.0.0.1:٣", "IP:PORT"),
        ("unix:", "path"),
        ("unix:/" + "x" * 107, "107 bytes"),
        ("unix:/a\0b", "path"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_no_address_to_wait_at(text, hint):
    with pytest.raises(UsageError, match="dial_back=") as caught:
        RemoteProvision.instantiate().dialled_back(text)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "target", "host"),
    [
        ("10.0.0.2:7000", "10.0.0.2:7000", "10.0.0.2"),
        ("[::1]:7000", "[::1]:7000", "[::1]"),
        ("client.example:7000", "client.example:7000", "client.example"),
        ("localhost:1", "localhost:1", "localhost"),
        ("unix:/run/x.sock", "unix:/run/x.sock", ""),
    ],
)
def test_what_a_proxy_server_dials(text, target, host):
    address = host_address(text)
    assert (address.target, address.host) == (target, host)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "10.0.0.2:0",
        "10.0.0.2:70000",
        "::1:7000",
        "[x]:1",
        "[]:1",
        "256.1.1.1:1",
        "a_b:1",
        "a/b:1",
        "-x:1",
        "unix:",
    ],
)
def test_no_address_to_dial(text):
    with pytest.raises(UsageError):
        host_address(text)


@pytest.mark.parametrize("text", ["[::]:7000", "0.0.0.0:7000"])
def test_all_addresses_of_a_machine_are_not_one_to_dial(text):
    with pytest.raises(UsageError, match="where a client waits"):
        host_address(text)


@pytest.mark.parametrize(
    ("offered", "peer", "target"),
    [
        ("[::]:7", "ipv4:10.77.0.2:4444", "10.77.0.2:7"),
        ("0.0.0.0:7", "ipv4:10.77.0.2:4444", "10.77.0.2:7"),
        ("[::]:7", "ipv6:%5B2001:db8::2%5D:4444", "[2001:db8::2]:7"),
        ("[::]:7", "ipv6:[2001:db8::2]:4444", "[2001:db8::2]:7"),
        ("[::]:7", "ipv6:%5B::ffff:10.77.0.2%5D:4444", "10.77.0.2:7"),
        ("0.0.0.0:7", "ipv6:%5B::ffff:10.77.0.2%5D:4444", "10.77.0.2:7"),
        ("[::]:7", "ipv6:%5Bfe80::2%25eth1%5D:4444", "[fe80::2%25eth1]:7"),
        ("[fe80::2%eth0]:7", "ipv6:%5Bfe80::2%25eth1%5D:4444", "[fe80::2%25eth1]:7"),
        ("10.77.0.2:7", "ipv4:10.77.0.2:4444", "10.77.0.2:7"),
        ("10.77.0.2:7", "ipv6:%5B::ffff:10.77.0.2%5D:4444", "10.77.0.2:7"),
        ("[::ffff:10.77.0.2]:7", "ipv4:10.77.0.2:4444", "10.77.0.2:7"),
        ("[::]:7", "unix:", "127.0.0.1:7"),
        ("[::1%x,10.0.0.1]:7", "unix:", "[::1]:7"),
        ("[::ffff:127.0.0.1]:7", "unix:", "127.0.0.1:7"),
        ("127.0.0.1:7", "unix:", "127.0.0.1:7"),
        ("[::1]:7", "ipv4:127.0.0.1:4444", "[::1]:7"),
        ("unix:/run/x", "unix:", "unix:/run/x"),
        ("unix:/run/x", "ipv4:127.0.0.1:4444", "unix:/run/x"),
        ("unix:/run/x", "ipv6:%5B::1%5D:4444", "unix:/run/x"),
    ],
)
def test_a_server_dials_where_it_sees_the_client(offered, peer, target):
    assert target_for(offered, peer) == target


@pytest.mark.parametrize(
    ("offered", "peer"),
    [
        ("10.77.0.3:7", "ipv4:10.77.0.2:4444"),
        ("127.0.0.1:22", "ipv4:10.77.0.2:4444"),
        ("[::1]:22", "ipv6:%5B2001:db8::2%5D:4444"),
        ("[::ffff:127.0.0.1]:22", "ipv4:10.77.0.2:4444"),
        ("169.254.169.254:80", "ipv4:127.0.0.1:4444"),
        ("10.0.0.1:80", "unix:"),
        ("0.0.0.0:7", "ipv6:%5B2001:db8::2%5D:4444"),
        ("unix:/run/docker.sock", "ipv4:10.77.0.2:4444"),
        ("unix:run/x", "unix:"),
        ("metadata.example:80", "ipv4:10.77.0.2:4444"),
        ("10.77.0.2:0", "ipv4:10.77.0.2:4444"),
        ("10.77.0.2:7", "garbage"),
        ("10.77.0.2:7", ""),
        ("", "unix:"),
    ],
)
def test_a_server_dials_nobody_else(offered, peer):
    with pytest.raises(UsageError, match="dial_back"):
        target_for(offered, peer)


ADDRESSES = st.one_of(
    st.text(max_size=40),
    st.builds("{}:{}".format, st.ip_addresses(v=4), st.integers(0, 70000)),
    st.builds("[{}]:{}".format, st.ip_addresses(v=6), st.integers(0, 70000)),
    st.builds("unix:{}".format, st.text(max_size=120)),
)
PEERS = st.one_of(
    st.builds("ipv4:{}:{}".format, st.ip_addresses(v=4), st.integers(1, 65535)),
    st.builds("ipv6:%5B{}%5D:{}".format, st.ip_addresses(v=6), st.integers(1, 65535)),
    st.just("unix:"),
    st.text(max_size=30),
)


@given(ADDRESSES, PEERS)
def test_nothing_but_the_peer_or_this_machine_for_itself(offered, peer):
    try:
        target = target_for(offered, peer)
    except UsageError:
        return
    if target.startswith("unix:"):
        assert peer.startswith("unix") or ipaddress.ip_address(_host(peer)).is_loopback
        return
    host, _, port = target.rpartition(":")
    assert 0 < int(port) < 65536
    dialled = ipaddress.ip_address(host.strip("[]").replace("%25", "%"))
    if not dialled.is_loopback:
        seen = ipaddress.ip_address(_host(peer))
        assert dialled in (seen, getattr(seen, "ipv4_mapped", None))


def _host(peer: str) -> str:
    return peer.partition(":")[2].rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")


def test_a_relative_path_is_of_the_folder_where_it_was_named(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="a", dir="/tmp") as directory:  # short: a socket lies there
        monkeypatch.chdir(directory)
        by_hand = RemoteProvision.instantiate(token="secret").dialled_back("unix:client.sock")
        monkeypatch.chdir("/")
        with pytest.raises(UnreachableError, match=f"no proxy server came to unix:{directory}/client.sock within"):
            by_hand.provision("sha256:" + "0" * 64, "sim", timeout=0.1)
        assert os.listdir(directory) == []
