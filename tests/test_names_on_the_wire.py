"""Names are bytes: each goes over the wire, whatever it is, in one form; and whatever comes over the wire is a name in one form."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adyton.communicator.messages import decode
from adyton.errors import RemoteProtocolError
from adyton.hostcall import abi
from adyton.hostcall.check import check
from adyton.hostcall.encoding import encode, restored, whole
from adyton.hostcall.events import Event, Happened, possible
from adyton.hostcall.names import from_wire, in_bytes, in_text, to_wire

FILE = abi.Attributes("file", 7, 0, 0o644, 1, 0, 0, 0)
LAST = "\U0010ffff"  # a real character that stands for a byte on the wire
SPELT = "".join(chr(0x10FF00 + byte) for byte in LAST.encode())  # it, on the wire

names = st.binary(max_size=40) | st.lists(
    st.sampled_from([b"a", b"/", b"\xff", b"\x80", "é".encode(), LAST.encode(), "\U0010ff7f".encode(), SPELT.encode()])
).map(b"".join)
spelt = st.text(
    st.sampled_from("a/é\0\U0010ff7f\U0010ffc3\U0010ffa9\U0010ff80\U0010ffff") | st.characters(codec="utf-8")
)


@given(names)
@example(LAST.encode())
def test_any_bytes_go_over_the_wire_and_come_back(name: bytes) -> None:
    wire = to_wire(in_text(name))
    assert wire.encode().decode() == wire
    assert in_bytes(from_wire(wire)) == name
    assert in_text(name) == os.fsdecode(name)
    assert len(wire) <= max(1, len(name)), "a name of NAME_MAX bytes is one of at most NAME_MAX characters there"


@given(spelt)
@example("\U0010ffc3\U0010ffa9")
@example(SPELT)
def test_what_comes_over_the_wire_has_one_form(wire: str) -> None:
    name = from_wire(wire)
    assert in_text(in_bytes(name)) == name, "else two texts would be one name of the operating system's"
    assert from_wire(to_wire(name)) == name
    assert [each for each in name if each < "\x80"] == [each for each in wire if each < "\x80"]


def test_two_spellings_are_one_name() -> None:
    assert from_wire("caf\U0010ffc3\U0010ffa9") == from_wire("café") == "café"
    assert to_wire(LAST) == SPELT
    assert from_wire(SPELT) == from_wire(to_wire(LAST)) == LAST


@given(st.lists(names.filter(bool), min_size=1, max_size=3))
def test_messages_carry_such_names_in_every_part(parts: list[bytes]) -> None:
    found = [in_text(each) for each in parts]
    messages: list[Any] = [
        abi.Stat(found[0]),
        abi.Rename(found[0], found[-1], exchange=True),
        abi.SetExtended(found[0], found[-1], b"\xf4\x8f\xbf\xbf\xff", "create", 3),
        abi.Compound([abi.Stat(each) for each in found] + [abi.Watch(found[0])], through=True),
        abi.Target(found[0]),
        abi.Names(found),
        abi.Entries([abi.Entry(each, FILE) for each in found], 3),
        abi.Changed([(each, each) for each in found]),
        Happened([Event(each, each, "moved-to", is_directory=True, cookie=5) for each in found]),
        abi.Data(b"".join(parts)),
    ]
    for message in messages:
        encoded = whole(message)
        assert restored(msgspec.msgpack.decode(encoded, type=type(message)), encoded) == message


@pytest.mark.parametrize("message", [abi.Stat("/café/\U0010ff7f"), abi.Stat("/a"), abi.Content(FILE, b"\xf4\x8f")])
def test_what_has_no_such_name_is_sent_as_it_is(message: abi.Request | abi.Result) -> None:
    assert encode(message) == msgspec.msgpack.encode(message)
    encoded = msgspec.msgpack.encode(message)
    assert restored(message, encoded) == message


@pytest.mark.parametrize(
    ("request_", "result", "fits"),
    [
        (abi.List("/a", 0), abi.Entries([abi.Entry("\udcff" * 255, FILE)], 0), True),
        (abi.List("/a", 0), abi.Entries([abi.Entry("é" * 128, FILE)], 0), False),
        (abi.List("/a", 0), abi.Entries([abi.Entry("é" * 127 + "\udcff\udcfe", FILE)], 0), False),
        (abi.ReadLink("/a"), abi.Target("\udcff" * 4095), True),
        (abi.ReadLink("/a"), abi.Target("\udcff" * 4096), False),
        (abi.ListExtended("/a"), abi.Names(["user." + "\udcff" * 250]), True),
        (abi.ListExtended("/a"), abi.Names(["user." + "\udcff" * 248 + "é€"]), False),
    ],
)
def test_lengths_are_bytes(request_: abi.Request, result: abi.Result, fits: bool) -> None:
    assert check(request_, whole(result)) == (result if fits else abi.Failed("EIO"))


def test_a_name_spelt_twice_in_a_listing_is_one_too_many() -> None:
    body = msgspec.msgpack.encode(abi.Entries([abi.Entry("é", FILE), abi.Entry("\U0010ffc3\U0010ffa9", FILE)], 0))
    assert check(abi.List("/a", 0), body) == abi.Failed("EIO")


def test_names_in_the_results_of_a_compound() -> None:
    entries = abi.Entries([abi.Entry("\udcff", FILE)], 0)
    body = whole(abi.Results([msgspec.Raw(whole(entries)), msgspec.Raw(whole(abi.Content(FILE, b"")))]))
    assert check(abi.Compound([abi.List("/a", 0), abi.Peek("/a", 0)]), body) == ([entries, abi.Content(FILE, b"")],)


@given(spelt.filter(bool))
def test_a_hostile_spelling_breaks_no_check(wire: str) -> None:
    pack = msgspec.msgpack.encode
    for request, result in (
        (abi.ReadLink("/a"), ["Target", wire]),
        (abi.List("/a", 0), ["Entries", [[wire, FILE]], 0]),
        (abi.ListExtended("/a"), ["Names", ["user." + wire]]),
    ):
        assert isinstance(check(request, pack(result)), abi.Target | abi.Entries | abi.Names | abi.Failed)
    body = pack(Happened([Event("/a", wire, "created")]))
    for event in possible(restored(decode(body, Happened), body)):
        assert len(os.fsencode(event.name)) <= 255


def test_surrogates_do_not_come_over_the_wire() -> None:
    body = msgspec.msgpack.encode(abi.Target("abc")).replace(b"abc", b"\xed\xb3\xbf")
    assert check(abi.ReadLink("/a"), body) == abi.Failed("EIO")
    body = msgspec.msgpack.encode(abi.Changed([("/a", "abc")])).replace(b"abc", b"\xed\xb3\xbf")
    with pytest.raises(RemoteProtocolError):
        decode(body, abi.Changed)
