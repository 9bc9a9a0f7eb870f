"""A lying client gets an errno raised in the enclave, and nothing else."""

from __future__ import annotations

import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from target_enclave_files import RESULTS as FITTING

from adyton.hostcall import abi
from adyton.hostcall.check import Checked, check
from adyton.hostcall.own_paths import OWN_PATHS, leads_to_own, own_path

pack = msgspec.msgpack.encode
BAD = abi.Failed("EIO")
FILE = abi.Attributes("file", 7, 10, 0o644, 1, 0, 0, 0)
DIRECTORY = abi.Attributes("directory", 8, 0, 0o755, 2, 0, 0, 0)
LINK = abi.Attributes("symlink", 9, 3, 0o777, 1, 0, 0, 0)
REQUESTS: list[abi.Request] = [
    abi.Access("/a", "read"),
    abi.Stat("/a"),
    abi.ReadLink("/a"),
    abi.List("/a", 5),
    abi.Open("/a", 3, "read"),
    abi.Read(3, 0, 10),
    abi.Write(3, 0, b"0123456789"),
    abi.SetAttributes("/a", size=1),
    abi.Sync(3, data_only=False),
    abi.SyncDirectory("/a"),
    abi.Close(3),
    abi.MakeDirectory("/a", 0o755),
    abi.Remove("/a", directory=False),
    abi.Rename("/a", "/b"),
    abi.Link("/a", "/b"),
    abi.SymbolicLink("/a", "b"),
    abi.StatFileSystem("/a"),
    abi.OpenUnnamed("/a", 3, "write"),
    abi.OpenAgain("/a", 3, 4, "read"),
    abi.Seek(3, 7, "data"),
    abi.Allocate(3, "extend", 0, 10),
    abi.Copy(3, 0, 4, 0, 10),
    abi.GetExtended("/a", "user.x"),
    abi.ListExtended("/a"),
    abi.SetExtended("/a", "user.x", b"v"),
    abi.RemoveExtended("/a", "user.x"),
    abi.Lock(3, 1, "write", 0, 9),
    abi.GetLock(3, 1, "read", 5, 9),
    abi.Flock(3, 1, "write"),
    abi.StopWaiting(1),
    abi.Look("/a"),
    abi.Peek("/a", 10),
    abi.Watch("/a"),
    abi.Unwatch("/a"),
    abi.Follow("/a"),
    abi.Unfollow("/a"),
    abi.SyncAll(),
    abi.Hold(3),
    abi.Compound([abi.Look("/a"), abi.Read(3, 0, 10)]),
    abi.Recall("measurement"),
    abi.Remember("signer", b"", b"note"),
    abi.ReadInput(10),
    abi.Call("f", b""),
]
RESULTS: list[abi.Result] = [
    abi.Done(),
    FILE,
    DIRECTORY,
    LINK,
    abi.Target("b"),
    abi.Entries([abi.Entry("x", FILE)], 0),
    abi.Data(b"12345"),
    abi.Written(5),
    abi.FileSystem(4096, 9, 8, 7, 6, 5),
    abi.Position(8),
    abi.Copied(5),
    abi.Names(["user.x"]),
    abi.Conflict("write", 7, 8),
    abi.Found(None),
    abi.Content(msgspec.structs.replace(FILE, size=2), b"12"),
    abi.Results([msgspec.Raw(pack(abi.Found(FILE))), msgspec.Raw(pack(abi.Data(b"12345")))]),
    abi.Value(b"v"),
]


def results(*each: abi.Result) -> abi.Results:
    return abi.Results([msgspec.Raw(pack(one)) for one in each])


@pytest.mark.parametrize(
    ("through", "each", "passes"),
    [
        (False, [abi.Found(None), abi.Data(b"")], True),
        (False, [abi.Failed("ENOENT")], True),
        (False, [abi.Found(None), abi.Failed("EIO")], True),
        (True, [abi.Failed("ENOENT"), abi.Data(b"")], True),
        (False, [abi.Found(None)], False),  # too few
        (True, [abi.Failed("ENOENT")], False),
        (False, [abi.Failed("ENOENT"), abi.Data(b"")], False),  # went on after a failure
        (False, [abi.Found(None), abi.Data(b""), abi.Data(b"")], False),  # too many
        (
            False,
            [abi.Data(b""), abi.Found(None)],
            False,
        ),  # in another order: what is in the place of one is no answer to it
    ],
)
def test_a_compound_has_a_result_for_each_request_up_to_a_failure(through, each, passes) -> None:
    request = abi.Compound([abi.Look("/a"), abi.Read(3, 0, 10)], through)
    got = check(request, pack(results(*each)))
    assert (got == Checked(each)) == passes


def test_what_is_wrong_in_a_compound_is_wrong_alone() -> None:
    request = abi.Compound([abi.Read(3, 0, 2), abi.Look("/a")], through=True)
    assert check(request, pack(results(abi.Data(b"123"), abi.Found(None)))) == Checked([BAD, abi.Found(None)])
    other = pack(abi.Results([msgspec.Raw(pack("no result")), msgspec.Raw(pack(abi.Found(None)))]))
    assert check(request, other) == Checked([BAD, abi.Found(None)])
    assert check(request, pack(abi.Results([msgspec.Raw(b"\xc1"), msgspec.Raw(pack(abi.Found(None)))]))) == BAD


def entries(*names: str, following: int = 0) -> abi.Entries:
    return abi.Entries([abi.Entry(name, FILE) for name in names], following)


def test_every_request_of_the_abi_has_a_validator() -> None:
    assert set(FITTING) == set(typing.get_args(abi.Request))
    for request in REQUESTS:
        assert check(request, pack(abi.Failed("ENOENT"))) == abi.Failed("ENOENT")


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_only_the_kind_of_result_that_was_asked_for_passes(request_: abi.Request, result: abi.Result) -> None:
    got = check(request_, pack(result))
    if not isinstance(result, FITTING[type(request_)]):
        assert got == BAD
    elif isinstance(result, abi.Results):
        assert got == Checked([abi.Found(FILE), abi.Data(b"12345")])
    else:
        assert got in (result, BAD)


@pytest.mark.parametrize(
    ("request_", "result"),
    [
        (abi.Open("/a", 3, "read"), DIRECTORY),
        (abi.Open("/a", 3, "read"), LINK),
        (abi.MakeDirectory("/a", 0o755), FILE),
        (abi.SetAttributes("/a", size=3), DIRECTORY),
        (abi.SetAttributes("/a", handle=3, mode=0o600), LINK),
        (abi.Read(3, 0, 4), abi.Data(b"12345")),
        (abi.Write(3, 0, b"1234"), abi.Written(5)),
        (abi.Write(3, 0, b"1234"), abi.Written(0)),
        (abi.List("/a", 0), entries("x", "x")),
        (abi.List("/a", 0), entries(".")),
        (abi.List("/a", 0), entries("..")),
        (abi.List("/a", 0), entries("b/c")),
        (abi.List("/a", 0), entries("b\0c")),
        (abi.List("/a", 0), entries("é" * 200)),
        (abi.List("/a", 5), entries("x", following=5)),
        (abi.List("/a", 5), entries("x", following=4)),
        (abi.ReadLink("/a"), abi.Target("b\0c")),
        (abi.ReadLink("/a"), abi.Target("é" * 4000)),
        (abi.Stat("/a", handle=3), DIRECTORY),
        (abi.Link("/a", "/b"), DIRECTORY),
        (abi.Link("/a", "/b", handle=3), LINK),
        (abi.SymbolicLink("/a", "b"), FILE),
        (abi.OpenUnnamed("/a", 3, "write"), DIRECTORY),
        (abi.OpenAgain("/a", 3, 4, "read"), DIRECTORY),
        (abi.Seek(3, 7, "hole"), abi.Position(6)),
        (abi.Copy(3, 0, 4, 0, 10), abi.Copied(11)),
        (abi.GetExtended("/a", "user.x"), abi.Data(bytes(abi.MAX_EXTENDED + 1))),
        (abi.ListExtended("/a"), abi.Names(["user.x", "user.x"])),
        (abi.ListExtended("/a"), abi.Names(["security.capability"])),
        (abi.ListExtended("/a"), abi.Names(["user."])),
        (abi.ListExtended("/a"), abi.Names(["user.a\0b"])),
        (abi.ListExtended("/a"), abi.Names(["user." + "é" * 126])),
        (abi.ListExtended("/a"), abi.Names([f"user.{number:0240}" for number in range(300)])),
        (abi.GetLock(3, 1, "read", 5, 9), abi.Conflict("read", 5, 9)),
        (abi.GetLock(3, 1, "read", 5, 9), abi.Conflict("write", 0, 4)),
        (abi.GetLock(3, 1, "read", 5, 9), abi.Conflict("write", 10)),
        (abi.GetLock(3, 1, "read", 5), abi.Conflict("write", 9, 7)),
        (abi.Stat("/a"), abi.Failed("EKEYEXPIRED")),
        (abi.Stat("/a"), abi.Failed("0")),
        (abi.Stat("/a"), abi.Failed("")),
    ],
)
def test_what_the_request_does_not_admit_is_an_input_output_error(request_: abi.Request, result: abi.Result) -> None:
    assert check(request_, pack(result)) == BAD


@pytest.mark.parametrize(
    ("request_", "result"),
    [
        (abi.Write(3, 0, b""), abi.Written(0)),
        (abi.Write(3, 0, b"12"), abi.Written(1)),
        (abi.Read(3, 0, 4), abi.Data(b"")),
        (abi.Read(3, 0, 4), abi.Data(b"1234")),
        (abi.List("/a", 5), entries()),
        (abi.List("/a", 5), entries(following=7)),  # all of this part were removed meanwhile
        (abi.List("/a", 5), entries("x", "y", following=7)),
        (abi.List("/a", 5), entries("...", "é" * 127)),
        (abi.SetAttributes("/a", mode=0o700), DIRECTORY),
        (abi.Stat("/a"), LINK),
        (abi.ReadLink("/a"), abi.Target("../b")),
        (abi.Stat("/a", handle=3), FILE),
        (abi.Link("/a", "/b"), LINK),
        (abi.Seek(3, 7, "data"), abi.Position(7)),
        (abi.Copy(3, 0, 4, 0, 10), abi.Copied(0)),
        (abi.ListExtended("/a"), abi.Names([])),
        (abi.GetExtended("/a", "user.x"), abi.Data(bytes(abi.MAX_EXTENDED))),
        (abi.GetLock(3, 1, "write", 5), abi.Conflict("read", 0)),
        (abi.GetLock(3, 1, "read", 5, 9), abi.Conflict("none", 7, 3)),
    ],
)
def test_what_the_request_admits_passes_as_it_is(request_: abi.Request, result: abi.Result) -> None:
    assert check(request_, pack(result)) == result


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\xa5abc",
        b"\x91" * 5000,
        pack(["Attributes"]),
        pack(["Attributes", "file", 0, 1, 1, 1, 1, 1, 1]),
        pack(["Attributes", "file", 1, -1, 1, 1, 1, 1, 1]),
        pack(["Attributes", "file", 1, 1, 0o10000, 1, 1, 1, 1]),
        pack(["Attributes", "pipe", 1, 1, 1, 1, 1, 1, 1]),
        pack(["Attributes", "file", 1, 1.0, 1, 1, 1, 1, 1]),
        pack(["Attributes", "file", 1, 1, 1, 1, 1, 1, 1, 0, "more"]),
        pack(["Attributes", "file", 1, 1, 1, 1, 1, 1, 1 << 63]),
        pack(FILE) + b"\xc0",
        b"\x92\xa6Failed\xa2\xff\xfe",
    ],
)
def test_malformed_replies_are_input_output_errors(body: bytes) -> None:
    assert check(abi.Stat("/a"), body) == BAD


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)
tagged = st.builds(
    lambda tag, rest: [tag, *rest],
    st.sampled_from([member.__name__ for member in typing.get_args(abi.Result)]),
    st.lists(plain | st.sampled_from(["file", "directory", "ENOENT"]) | st.integers(0, 9), max_size=11),
)


@given(st.sampled_from(REQUESTS), st.binary(max_size=64) | st.builds(pack, plain | tagged))
def test_no_reply_does_more_than_its_request_admits(request_: abi.Request, body: bytes) -> None:
    result = check(request_, body)
    assert isinstance(result, abi.Failed | FITTING[type(request_)])
    if isinstance(result, abi.Failed):
        assert result.errno in abi.ERRNO_NAMES
    elif isinstance(result, abi.Data) and not isinstance(request_, abi.GetExtended):
        assert len(result.data) <= 10
    elif isinstance(result, abi.Written):
        assert 1 <= result.size <= 10


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/", None),
        ("/home", None),
        ("/usr", "/usr"),
        ("/usr/lib/python3", "/usr"),
        ("/usrlocal", None),
        ("/lib64/ld.so", "/lib*"),
        ("/libx32", "/lib*"),
        ("/opt", None),
        ("/opt/data", None),
        ("/opt/adyton", "/opt/adyton"),
        ("/opt/adyton/lib/x", "/opt/adyton"),
        ("/dev/shm", "/dev"),
        ("/home/usr", None),
    ],
)
def test_the_enclave_own_names_cover_what_is_below_them(path: str, own: str | None) -> None:
    assert own_path(path) == own


def test_only_the_root_and_opt_lead_to_own_names() -> None:
    assert all(own_path(path.replace("*", "")) == path for path in OWN_PATHS)
    assert [path for path in ("/", "/opt", "/op", "/usr", "/home") if leads_to_own(path)] == ["/", "/opt"]


segments = st.text(alphabet="abilx\n*.", max_size=5).filter(bool)


@given(st.lists(st.sampled_from(["usr", "lib", "opt", "adyton", "lib64"]) | segments, max_size=3))
def test_own_names_are_told_name_by_name(names: list[str]) -> None:
    def covers(own: str) -> bool:
        rows = own.split("/")[1:]
        return len(names) >= len(rows) and all(
            name.startswith("lib") if row == "lib*" else name == row for name, row in zip(names, rows, strict=False)
        )

    assert own_path("/" + "/".join(names)) == next(filter(covers, OWN_PATHS), None)
