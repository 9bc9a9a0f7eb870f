"""The guest's file tree: what is the enclave's own, the client's, private or denied, operation by operation."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from fake_client import FakeClient
from fake_kernel import FakeKernel, nothing_wanted, raises

from adyton.hostcall import abi
from adyton.runtime.process.supervisor import fuse_abi, fuse_answers
from adyton.runtime.process.supervisor.files import HANDLED, REFUSED, SILENT, FileServer
from adyton.runtime.process.supervisor.fuse_abi import FOREVER, Opcode, SetFlag
from adyton.runtime.process.supervisor.tree import OWN_DIRECTORIES
from adyton.runtime.process.supervisor.wanted import Wanted

WRITE = os.O_WRONLY | os.O_CREAT


@pytest.fixture
def client() -> FakeClient:
    client = FakeClient({"/work/in": "read", "/work/out": "write", "/srv/a/b.txt": "read"})
    client.file("/work/in/x.txt", b"line one\n")
    client.file("/work/secret", b"no")
    client.directory("/work/out")
    client.file("/srv/a/b.txt", b"b")
    client.file("/home/ann/.netrc", b"no")
    return client


@pytest.fixture
def kernel(client: FakeClient) -> FakeKernel:
    return FakeKernel.loaded(client)


def requests(client: FakeClient) -> list[str]:
    return [type(request).__name__ for request in client.log]


def test_every_operation_of_the_protocol_has_its_place() -> None:
    places = [set(HANDLED), set(REFUSED), set(SILENT), {Opcode.INIT, Opcode.DESTROY}]
    assert set().union(*places) == set(Opcode)
    assert sum(map(len, places)) == len(Opcode)


# -- the enclave's own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", OWN_DIRECTORIES)
def test_what_leads_to_a_mount_is_there_for_ever_and_never_asked_of_the_client(path: str, client: FakeClient) -> None:
    client.allowed["/"] = "write"
    client.allowed.pop("/work/in")
    kernel = FakeKernel(FileServer(wanted=nothing_wanted), client)
    if path != "/tmp":
        assert kernel.lookup(path).name_lifetime == FOREVER
        kernel.server.set_layout(client.layout())
        entry = kernel.lookup(path)
        assert (entry.name_lifetime, entry.attr_lifetime) == (FOREVER, FOREVER)
        assert stat.S_ISDIR(entry.attr.mode)
        assert client.log == []
    else:  # covered by "/": the client's
        assert kernel.lookup(path).name_lifetime == 0
        kernel.server.set_layout(client.layout())
        with raises(errno.ENOENT):
            kernel.lookup(path)
        assert requests(client) == ["Stat"]


@pytest.mark.parametrize("name", ["/sealed", "/libfoo", "/usr/x", "/enclave/x", "/opt/adyton/x"])
def test_own_names_that_are_not_there_are_not_looked_for_on_the_client(name: str, client: FakeClient) -> None:
    client.allowed = {"/": "write"}
    client.file(name, b"hostile")
    kernel = FakeKernel.loaded(client)
    with raises(errno.ENOENT):
        kernel.lookup(name)
    with raises(errno.EACCES):
        kernel.request(Opcode.CREATE, *created_at(kernel, name))
    for make in (kernel.mkdir, kernel.unlink, kernel.rmdir):
        with raises(errno.EACCES):
            make(name)
    assert client.log == []


def created_at(kernel: FakeKernel, path: str) -> tuple[int, fuse_abi.Create]:
    node, name = kernel.parent(path)
    return node, fuse_abi.Create(WRITE, 0o644, 0, name)


def test_before_the_load_only_the_enclave_own_directories_exist(client: FakeClient) -> None:
    kernel = FakeKernel(FileServer(wanted=nothing_wanted), client)
    for path in ("/home", "/etc2", "/work"):
        with raises(errno.EACCES):
            kernel.lookup(path)
    with raises(errno.EACCES):
        kernel.listdir("/")
    assert client.log == []


def test_an_allowed_root_lists_the_client_names_under_the_enclave_own(client: FakeClient) -> None:
    client.allowed = {"/": "read"}
    client.file("/usr/evil", b"")
    client.file("/opt/data/x", b"")
    client.link("/lib64", "/work")
    kernel = FakeKernel.loaded(client)
    names = kernel.listdir("/")
    own = [path[1:] for path in OWN_DIRECTORIES if path.count("/") == 1 and path != "/tmp"]
    assert sorted(names) == sorted([*own, "home", "srv", "work"])
    assert kernel.listdir("/opt") == ["adyton", "data"]
    assert stat.S_ISDIR(kernel.lookup("/lib64").attr.mode)
    assert kernel.listdir("/usr") == []
    assert kernel.lookup("/opt").attr_lifetime == FOREVER


# -- the client's -----------------------------------------------------------------------------------------------------


def test_a_file_is_read_where_the_client_allows(kernel: FakeKernel, client: FakeClient) -> None:
    assert kernel.read("/work/in/x.txt") == b"line one\n"
    assert requests(client) == ["Stat", "Stat", "Stat", "Open", "Read", "Close"]
    assert client.handles == {}
    entry = kernel.lookup("/work/in/x.txt")
    assert (entry.name_lifetime, entry.attr_lifetime) == (0, 0)
    assert (entry.attr.size, entry.attr.uid, stat.S_IMODE(entry.attr.mode)) == (9, 1000, 0o644)


def test_a_file_is_made_written_appended_to_and_truncated(kernel: FakeKernel, client: FakeClient) -> None:
    kernel.write("/work/out/y", b"0123456789")
    assert client.things["/work/out/y"].data == b"0123456789"
    assert client.things["/work/out/y"].mode == 0o644
    opened = kernel.open("/work/out/y", os.O_WRONLY | os.O_APPEND)
    kernel.pwrite(opened, b"ab", 3, flags=os.O_APPEND)
    kernel.close(opened)
    assert client.things["/work/out/y"].data == b"0123456789ab"
    kernel.truncate("/work/out/y", 4)
    assert client.things["/work/out/y"].data == b"0123"
    kernel.close(kernel.open("/work/out/y", os.O_WRONLY | os.O_TRUNC))
    assert client.things["/work/out/y"].data == b""


def test_exclusive_creation_is_the_client_decision(kernel: FakeKernel, client: FakeClient) -> None:
    parent, name = kernel.parent("/work/out/z")
    client.file("/work/out/z", b"was first")
    with raises(errno.EEXIST):
        kernel.request(Opcode.CREATE, parent, fuse_abi.Create(WRITE | os.O_EXCL, 0o644, 0, name))
    assert isinstance(client.log[-1], abi.Open)
    assert client.log[-1].exclusive


def test_a_mapped_page_goes_to_its_place_in_a_file_opened_to_append(kernel: FakeKernel, client: FakeClient) -> None:
    kernel.write("/work/out/log", b"0123456789")
    opened = kernel.open("/work/out/log", os.O_RDWR | os.O_APPEND)
    kernel.pwrite(opened, b"AB", 2, flags=os.O_APPEND, write_flags=fuse_abi.WRITE_CACHE)
    kernel.pwrite(opened, b"CD", 4, flags=0)
    kernel.pwrite(opened, b"!", 0, flags=os.O_APPEND)
    assert client.things["/work/out/log"].data == b"01ABCD6789!"
    kernel.close(opened)
    assert client.handles == {}


def test_reads_beyond_one_block_are_put_together(kernel: FakeKernel, client: FakeClient) -> None:
    data = os.urandom(2 * abi.MAX_BLOCK + 5)
    client.file("/work/in/big", data)
    opened = kernel.open("/work/in/big")
    assert kernel.pread(opened, 4 * abi.MAX_BLOCK, 0) == data
    assert kernel.pread(opened, abi.MAX_BLOCK, len(data)) == b""


def test_names_are_listed_in_as_many_parts_as_it_takes(kernel: FakeKernel, client: FakeClient) -> None:
    names = sorted(f"name-{number}" for number in range(10))
    for name in names:
        client.file(f"/work/out/{name}")
    assert kernel.listdir("/work/out") == names
    assert kernel.listdir("/work/out", size=40) == names
    node = kernel.lookup("/work/out").node
    handle = fuse_answers.unpack_open(kernel.request(Opcode.OPENDIR, node, fuse_abi.Open(0))).handle
    everything = fuse_abi.Read(handle, 0, 4096)
    kernel.request(Opcode.READDIR, node, everything)
    client.file("/work/out/a-new-one")
    found = [entry.name for entry in fuse_answers.unpack_directory(kernel.request(Opcode.READDIR, node, everything))]
    assert b"a-new-one" in found, "a rewound listing is a new one"


def test_directories_are_made_renamed_and_removed(kernel: FakeKernel, client: FakeClient) -> None:
    kernel.mkdir("/work/out/d")
    kernel.write("/work/out/d/f", b"f")
    opened = kernel.open("/work/out/d/f")
    kernel.rename("/work/out/d", "/work/out/e")
    assert kernel.getattr(opened[0]).size == 1, "an open file's name moves with its directory"
    assert client.log[-1] == abi.Stat("/work/out/e/f", handle=opened[1])
    with raises(errno.ENOTEMPTY):
        kernel.rmdir("/work/out/e")
    kernel.unlink("/work/out/e/f")
    kernel.rmdir("/work/out/e")
    assert client.things.keys() & {"/work/out/d", "/work/out/e"} == set()
    with raises(errno.ENOENT):
        kernel.lookup("/work/out/e")


def test_a_rename_replaces_unless_it_must_not(kernel: FakeKernel, client: FakeClient) -> None:
    kernel.write("/work/out/a", b"a")
    kernel.write("/work/out/b", b"b")
    with raises(errno.EEXIST):
        kernel.rename("/work/out/a", "/work/out/b", flags=fuse_abi.RENAME_NOREPLACE)
    for flags in (fuse_abi.RENAME_NOREPLACE | fuse_abi.RENAME_EXCHANGE, 4):  # 4: whiteout
        with raises(errno.EINVAL):
            kernel.rename("/work/out/a", "/work/out/b", flags=flags)
    kernel.rename("/work/out/a", "/work/out/b")
    assert client.things["/work/out/b"].data == b"a"
    assert kernel.read("/work/out/b") == b"a"


def test_an_open_file_outlives_its_name(kernel: FakeKernel, client: FakeClient) -> None:
    opened = kernel.open("/work/out/u", os.O_RDWR | os.O_CREAT)
    kernel.unlink("/work/out/u")
    kernel.pwrite(opened, b"hello", 3)
    attr = kernel.getattr(opened[0])
    assert (attr.size, attr.links) == (8, 0)
    assert kernel.pread(opened, 99, 0) == b"\0\0\0hello"
    assert kernel.setattr(opened[0], valid=SetFlag.SIZE, size=4).size == 4
    kernel.close(opened)
    with raises(errno.ESTALE):
        kernel.setattr(opened[0], valid=SetFlag.MODE, mode=0o600)


def test_a_file_that_another_program_replaced_is_another_node(kernel: FakeKernel, client: FakeClient) -> None:
    opened = kernel.open("/work/in/x.txt")
    client.file("/work/in/x.txt", b"a newer file")
    assert kernel.getattr(opened[0]).links == 0
    newer = kernel.lookup("/work/in/x.txt")
    assert newer.node != opened[0]
    assert kernel.pread(opened, 99, 0) == b"line one\n"
    client.file("/work/in/x.txt", b"the newest")
    with raises(errno.ESTALE):
        kernel.request(Opcode.OPEN, newer.node, fuse_abi.Open(os.O_RDONLY))
    with raises(errno.ESTALE):
        kernel.getattr(kernel.lookup("/work/in/x.txt").node if client.file("/work/in/x.txt") is None else newer.node)
    kernel.close(opened)
    assert client.handles == {}


def test_a_file_that_another_program_removed_lives_on_where_it_is_open(kernel: FakeKernel, client: FakeClient) -> None:
    opened = kernel.open("/work/in/x.txt")
    client.file("/work/in/y.txt", b"")
    closed = kernel.lookup("/work/in/y.txt").node
    del client.things["/work/in/x.txt"], client.things["/work/in/y.txt"]
    attr = kernel.getattr(opened[0])
    assert (attr.size, attr.links) == (9, 0)
    assert kernel.pread(opened, 99, 0) == b"line one\n"
    for _ in range(2):
        with raises(errno.ENOENT):
            kernel.lookup("/work/in/x.txt")
    with raises(errno.ENOENT):
        kernel.getattr(closed)
    kernel.close(opened)
    assert client.handles == {}


def test_an_open_file_outlives_its_directory(kernel: FakeKernel, client: FakeClient) -> None:
    kernel.mkdir("/work/out/d")
    opened = kernel.open("/work/out/d/f", os.O_RDWR | os.O_CREAT)
    client.things["/work/old"] = client.things.pop("/work/out/d")
    client.directory("/work/out/d")
    kernel.lookup("/work/out/d")
    kernel.setattr(opened[0], valid=SetFlag.SIZE | SetFlag.FH, size=4, handle=opened[1])
    request = client.log[-1]
    assert isinstance(request, abi.SetAttributes)
    assert (request.path, request.handle) == ("/work/out/d/f", opened[1])
    assert kernel.pread(opened, 9, 0) == bytes(4)


def test_attributes_are_set(kernel: FakeKernel, client: FakeClient) -> None:
    kernel.write("/work/out/y", b"")
    node = kernel.lookup("/work/out/y").node
    assert stat.S_IMODE(kernel.setattr(node, valid=SetFlag.MODE, mode=stat.S_IFREG | 0o600).mode) == 0o600
    attr = kernel.setattr(
        node, valid=SetFlag.MTIME | SetFlag.ATIME | SetFlag.ATIME_NOW, modified_seconds=5, modified_nanoseconds=7
    )
    assert attr.modified == 5 * 10**9 + 7
    assert client.log[-1] == abi.SetAttributes("/work/out/y", accessed="now", modified=5 * 10**9 + 7)
    kernel.setattr(node, valid=SetFlag.UID | SetFlag.GID, uid=1000, gid=1000)
    with raises(errno.EPERM):
        kernel.setattr(node, valid=SetFlag.UID, uid=0)


def test_fsync_waits_until_the_client_has_it(kernel: FakeKernel, client: FakeClient) -> None:
    opened = kernel.open("/work/out/y", WRITE)
    unique = kernel.send(Opcode.FSYNC, opened[0], fuse_abi.Sync(opened[1], fuse_abi.FSYNC_DATA_ONLY))
    assert unique not in kernel.answers
    assert [ask.request for ask in kernel.asks] == [abi.Sync(opened[1], data_only=True)]
    kernel.run()
    assert kernel.taken(unique) == b""
    assert client.synced == [opened[1]]


def test_what_the_client_cannot_do_for_a_directory_is_not_pretended(kernel: FakeKernel, client: FakeClient) -> None:
    node = kernel.lookup("/work/out").node
    handle = fuse_answers.unpack_open(kernel.request(Opcode.OPENDIR, node, fuse_abi.Open(0))).handle
    assert kernel.request(Opcode.FSYNCDIR, node, fuse_abi.Sync(handle, 0)) == b""
    assert requests(client)[-1] == "SyncDirectory"
    for opcode, body, number in (
        (Opcode.LINK, fuse_abi.Link(node, b"l"), errno.EPERM),
        (Opcode.MKNOD, fuse_abi.MakeNode(stat.S_IFIFO, 0, 0, b"p"), errno.EPERM),
        (Opcode.MKNOD, fuse_abi.MakeNode(stat.S_IFCHR, 0, 0, b"p"), errno.EPERM),
        (Opcode.IOCTL, fuse_abi.Nothing(), errno.ENOTTY),
    ):
        with raises(number):
            kernel.request(opcode, node, body)


def test_what_is_no_file_cannot_be_opened(kernel: FakeKernel, client: FakeClient) -> None:
    client.file("/work/in/fifo").kind = "other"
    assert stat.S_ISSOCK(kernel.lookup("/work/in/fifo").attr.mode)


def test_names_that_the_protocol_cannot_carry_are_refused(kernel: FakeKernel, client: FakeClient) -> None:
    node = kernel.lookup("/work/out").node
    asked = len(client.log)
    for name in (b"a" * 256, "é".encode() * 128, b"\xff" * 256):
        with raises(errno.ENAMETOOLONG):
            kernel.request(Opcode.LOOKUP, node, fuse_abi.Name(name))
    assert len(client.log) == asked


@pytest.mark.parametrize("name", [b"\xff", b"caf\xe9", b"\x80" * 255, "\U0010ffff".encode()])
def test_names_are_bytes(kernel: FakeKernel, client: FakeClient, name: bytes) -> None:
    path = "/work/out/" + os.fsdecode(name)
    kernel.write(path, b"content")
    assert client.things[path].data == b"content"
    assert kernel.listdir("/work/out") == [os.fsdecode(name)]
    kernel.symlink(path, "/work/out/link")
    assert kernel.readlink("/work/out/link") == path == client.things["/work/out/link"].target
    kernel.rename(path, path[:-1] + "\udcfe")
    assert client.things.keys() >= {path[:-1] + "\udcfe"}
    kernel.unlink(path[:-1] + "\udcfe")
    with raises(errno.ENOENT):
        kernel.lookup(path[:-1] + "\udcfe")


# -- denied -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "denied"),
    [
        ("/home/ann/.netrc", "/home"),
        ("/work/secret", "/work/secret"),
        ("/work/absent", "/work/absent"),
        ("/srv/a/other", "/srv/a/other"),
        ("/sys", "/sys"),
    ],
)
def test_what_is_not_allowed_is_denied_aloud_whether_it_is_there_or_not(
    kernel: FakeKernel, client: FakeClient, path: str, denied: str
) -> None:
    with raises(errno.EACCES):
        kernel.read(path)
    assert client.denied == [(denied, "read")]
    assert client.log[-1] == abi.Access(denied, "read")


def test_what_no_program_wanted_is_denied_without_a_word(kernel: FakeKernel, client: FakeClient) -> None:
    with raises(errno.EACCES):
        kernel.read("/work/<unknown>")
    assert client.denied == []


def test_a_denial_stands_whatever_the_client_says(client: FakeClient) -> None:
    kernel = FakeKernel.loaded(client)
    client.allowed["/home"] = "write"  # after the layout was sent
    with raises(errno.EACCES):
        kernel.read("/home/ann/.netrc")


@pytest.mark.parametrize(
    ("hint", "asked"),
    [
        (Wanted("/home/ann/.netrc", "read"), abi.Access("/home/ann/.netrc", "read")),
        (Wanted("/home/ann/.netrc", "write"), abi.Access("/home/ann/.netrc", "write")),
        (Wanted("/home", "write"), abi.Access("/home", "write")),
        (Wanted("/homes", "write"), abi.Access("/home", "read")),
        (Wanted("/home/../etc", "write"), abi.Access("/home", "read")),
        (Wanted("home/ann", "read"), abi.Access("/home", "read")),
        (None, abi.Access("/home", "read")),
    ],
)
def test_a_denial_names_the_whole_path_where_it_can_be_told(
    client: FakeClient, hint: Wanted | None, asked: abi.Access
) -> None:
    threads: list[tuple[int, str]] = []

    def wanted(thread: int, path: str) -> Wanted | None:
        threads.append((thread, path))
        return hint

    kernel = FakeKernel(FileServer(wanted=wanted), client)
    kernel.server.set_layout(client.layout())
    with raises(errno.EACCES):
        kernel.request(Opcode.LOOKUP, 1, fuse_abi.Name(b"home"), pid=17)
    assert threads == [(17, "/home")]
    assert client.log == [asked]


def test_a_directory_that_leads_to_an_allowed_path_is_entered_and_not_listed(
    kernel: FakeKernel, client: FakeClient
) -> None:
    for path in ("/srv", "/srv/a", "/work", "/"):
        node = kernel.lookup(path).node
        kernel.request(Opcode.ACCESS, node, fuse_abi.Access(os.X_OK))
        with raises(errno.EACCES):
            kernel.listdir(path)
        with raises(errno.EACCES):
            kernel.request(Opcode.ACCESS, node, fuse_abi.Access(os.W_OK))
    assert [path for path, right in client.denied if right == "read"] == ["/srv", "/srv/a", "/work", "/"]
    for change in (kernel.mkdir, kernel.unlink, kernel.rmdir):
        with raises(errno.EACCES):
            change("/srv/a")
    with raises(errno.EACCES):
        kernel.rename("/srv/a", "/work/out/a")
    with raises(errno.EACCES):
        kernel.setattr(kernel.lookup("/srv/a").node, valid=SetFlag.MODE, mode=0)


def test_writing_where_only_reading_is_allowed_is_the_client_denial(kernel: FakeKernel, client: FakeClient) -> None:
    with raises(errno.EACCES):
        kernel.open("/work/in/x.txt", os.O_WRONLY)
    with raises(errno.EACCES):
        kernel.write("/work/in/new", b"")
    assert client.denied == [("/work/in/x.txt", "write"), ("/work/in/new", "write")]
    node = kernel.lookup("/work/in/x.txt").node
    kernel.request(Opcode.ACCESS, node, fuse_abi.Access(os.R_OK))
    for mask in (os.W_OK, os.X_OK):
        with raises(errno.EACCES):
            kernel.request(Opcode.ACCESS, node, fuse_abi.Access(mask))


# -- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/usr/lib/x",
        "/proc/self/mem",
        "/enclave",
        "../../dev/shm",
        "../../../../etc/passwd",
        "/tmp/x",
        "/./usr//lib",
        "/work/../proc",
        "link/../../proc",
        "//proc/1/mem",
        "./../..//proc",
    ],
)
def test_a_link_of_the_client_never_leads_to_the_enclave_own(
    kernel: FakeKernel, client: FakeClient, target: str
) -> None:
    client.link("/work/in/l", target)
    with raises(errno.EACCES):
        kernel.readlink("/work/in/l")


@pytest.mark.parametrize(
    "target", ["x.txt", "./x.txt", "../in/x.txt", "/work/in/x.txt", "/home/ann/.netrc", "../../srv/a"]
)
def test_other_links_are_followed_by_the_kernel_which_asks_for_each_name(
    kernel: FakeKernel, client: FakeClient, target: str
) -> None:
    client.link("/work/in/l", target)
    assert stat.S_ISLNK(kernel.lookup("/work/in/l").attr.mode)
    assert kernel.readlink("/work/in/l") == target


# -- start, and the bounds of requests --------------------------------------------------------------------------------


def test_the_kernel_and_the_server_agree_on_large_requests() -> None:
    kernel = FakeKernel(FileServer(wanted=nothing_wanted))
    answer = fuse_answers.unpack_init(kernel.request(Opcode.INIT, 0, fuse_abi.Init(7, 99, 1 << 30, 0xFFFFFFFF)))
    assert answer.max_write == abi.MAX_BLOCK
    assert answer.minor == fuse_abi.MINOR_SPOKEN
    assert answer.flags & fuse_abi.InitFlag.ATOMIC_O_TRUNC
    assert not answer.flags & (1 << 16), "no write-back"
    with raises(errno.EPROTO):
        kernel.request(Opcode.INIT, 0, fuse_abi.Init(7, 30, 0, 0))


@pytest.mark.parametrize("path", ["/work/out/y", "/tmp/y"])
def test_an_open_that_may_neither_read_nor_write_is_refused_and_makes_nothing(path: str, client: FakeClient) -> None:
    client.allowed["/tmp/shared"] = "write"
    kernel = FakeKernel.loaded(client)
    with raises(errno.EINVAL):
        kernel.open(path, os.O_ACCMODE | os.O_CREAT)
    with raises(errno.ENOENT):
        kernel.lookup(path)
    kernel.write(path, b"here")
    with raises(errno.EINVAL):
        kernel.open(path, os.O_ACCMODE | os.O_TRUNC)
    assert kernel.read(path) == b"here"


FAR = 1 << 40  # seconds: more nanoseconds than 64 bits hold


@pytest.mark.parametrize("path", ["/work/out/y", "/tmp/y"])
@pytest.mark.parametrize("seconds", [FAR, -FAR, (1 << 63) - 1, -(1 << 63)])
def test_a_time_beyond_what_a_host_call_carries_becomes_the_nearest(
    path: str, seconds: int, client: FakeClient
) -> None:
    client.allowed["/tmp/shared"] = "write"
    kernel = FakeKernel.loaded(client)
    kernel.write(path, b"")
    attr = kernel.setattr(
        kernel.lookup(path).node,
        valid=SetFlag.ATIME | SetFlag.MTIME,
        accessed_seconds=seconds,
        modified_seconds=seconds,
        modified_nanoseconds=fuse_abi.SECOND - 1,
    )
    assert attr.modified == ((1 << 63) - 1 if seconds > 0 else -(1 << 63))


def test_places_in_a_file_end_where_the_numbers_of_files_do(kernel: FakeKernel, client: FakeClient) -> None:
    node, handle = kernel.open("/work/out/y", os.O_RDWR | os.O_CREAT)
    asked = len(client.log)
    for request in (
        (Opcode.READ, fuse_abi.Read(handle, (1 << 63) - 1, 1)),
        (Opcode.WRITE, fuse_abi.Write(handle, (1 << 63) - 1, 1, 0, 0, b"x")),
        (Opcode.READ, fuse_abi.Read(handle, (1 << 64) - 1, 0)),
    ):
        with raises(errno.EINVAL):
            kernel.request(request[0], node, request[1])
    with raises(errno.EINVAL):
        kernel.setattr(node, valid=SetFlag.SIZE, size=1 << 63)
    assert len(client.log) == asked


@pytest.mark.parametrize("above", ["/work/out", "/tmp"])
def test_a_directory_cannot_be_moved_into_itself(above: str, client: FakeClient) -> None:
    client.allowed["/tmp/shared"] = "write"
    kernel = FakeKernel.loaded(client)
    kernel.mkdir(f"{above}/d")
    kernel.mkdir(f"{above}/d/e")
    for target in ("d/x", "d/e/x", "d/e"):
        with raises(errno.EINVAL):
            kernel.rename(f"{above}/d", f"{above}/{target}")
    assert kernel.listdir(f"{above}/d") == ["e"]


def test_moves_that_cross_make_no_circle(kernel: FakeKernel, client: FakeClient) -> None:
    for name in ("d", "e"):
        kernel.mkdir(f"/work/out/{name}")
    out, d, e = (kernel.lookup(path).node for path in ("/work/out", "/work/out/d", "/work/out/e"))
    kernel.send(Opcode.RENAME2, out, fuse_abi.Rename(e, 0, b"d", b"d"))
    kernel.send(Opcode.RENAME2, out, fuse_abi.Rename(d, 0, b"e", b"e"))
    for ask in kernel.asks[:]:
        kernel.apply(kernel.server.resume(ask.ticket, abi.Done()))
    with raises(errno.ESTALE):
        kernel.request(Opcode.LOOKUP, d, fuse_abi.Name(b"x"))


def test_a_file_is_no_directory(kernel: FakeKernel, client: FakeClient) -> None:
    node = kernel.open("/work/out/y", WRITE)[0]
    for opcode, body in (
        (Opcode.LOOKUP, fuse_abi.Name(b"x")),
        (Opcode.LINK, fuse_abi.Link(node, b"x")),
        (Opcode.MKDIR, fuse_abi.MakeDir(0o777, 0, b"x")),
    ):
        with raises(errno.ENOTDIR):
            kernel.request(opcode, node, body)


def test_a_file_that_another_process_just_closed_is_asked_about_by_its_name(
    kernel: FakeKernel, client: FakeClient
) -> None:
    """The client may see to the close first."""
    file = kernel.open("/work/out/y", WRITE)
    asked = kernel.send(Opcode.GETATTR, file[0], fuse_abi.Nothing())
    late = kernel.asks.pop()
    kernel.close(file)
    assert client.handles == {}
    kernel.asks.append(late)
    kernel.run()
    assert kernel.taken(asked)
    assert [type(request).__name__ for request in client.log[-3:]] == ["Close", "Stat", "Stat"]
