"""The file server under a real kernel: ordinary calls of an ordinary program whose root is the mount."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec
import pytest
from fake_client import FakeClient
from fake_kernel import nothing_wanted

from adyton.hostcall import abi
from adyton.hostcall.check import check
from adyton.runtime.process.supervisor.files import Answer, Ask, FileServer
from adyton.runtime.process.supervisor.wanted import GuestThreads, Wanted

pytestmark = pytest.mark.sandbox
GUEST = str(Path(__file__).with_name("fuse_guest.py"))


class Guest:
    """A guest under way. `withhold`: requests for which the client keeps its answer to itself."""

    def __init__(self, client: FakeClient, mount_point: Path, code: str) -> None:
        self.client = client
        self.withhold: Callable[[abi.Request], bool] = lambda _request: False
        self.withheld: list[Ask] = []
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = mine
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-X", "utf8", GUEST, str(other.fileno()), str(mount_point), dedent(code)],
                pass_fds=[other.fileno()],
                stdout=subprocess.PIPE,
                text=True,
            )
        start = mine.recv(256)
        if not start.isdigit():
            self.refuse(start)
        message, descriptors, _, _ = socket.recv_fds(mine, 256, 1)
        if message != b"mounted":
            self.refuse(message)
        self.fuse = descriptors[0]
        self.pid = int(start)
        self.server = FileServer(wanted=self.wanted)
        self.server.set_layout(client.layout())
        self.wanted_by: GuestThreads | None = None
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._serve)

    def refuse(self, reason: bytes) -> None:
        self.close_process()
        pytest.skip(f"no FUSE mount in a user namespace here: {reason.decode()}")

    def wanted(self, thread: int, path: str) -> Wanted | None:
        return self.wanted_by.wanted(thread, path) if self.wanted_by else nothing_wanted(thread, path)

    def _serve(self) -> None:
        try:
            while True:
                if not select.select([self.fuse], [], [], self.server.patience)[0]:
                    self.do(self.server.lose_patience())
                    continue
                try:
                    message = os.read(self.fuse, (1 << 20) + 8192)
                except FileNotFoundError:
                    continue
                except OSError:
                    return  # unmounted
                self.do(self.server.receive(message))
        except BaseException as error:
            self.failure = error
            raise

    def do(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Answer):
                with suppress(FileNotFoundError):  # nobody waits any more
                    os.write(self.fuse, b"".join(effect.parts))
            elif not isinstance(effect, Ask):
                self.client.execute(effect.request)
            elif self.withhold(effect.request):
                self.withheld.append(effect)
            else:
                body = msgspec.msgpack.encode(self.client.execute(effect.request))
                self.do(self.server.resume(effect.ticket, check(effect.request, body)))

    def result(self) -> Any:
        self.thread.start()
        self.socket.send(b"g")
        output, _ = self.process.communicate(timeout=60)
        self.thread.join(60)
        assert self.failure is None
        return json.loads(output)

    def close_process(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.socket.close()

    def close(self) -> None:
        self.close_process()
        if self.thread.ident is not None:
            self.thread.join(60)
        os.close(self.fuse)


@pytest.fixture
def client() -> FakeClient:
    client = FakeClient({"/work/in": "read", "/work/out": "write", "/tmp/shared": "write"})
    client.file("/work/in/x.txt", b"line one\nline two\n")
    client.file("/work/secret", b"no")
    client.directory("/work/out")
    client.directory("/tmp/shared")
    client.file("/home/ann/.netrc", b"no")
    return client


@pytest.fixture
def start(client: FakeClient, tmp_path: Path) -> Iterator[Callable[[str], Guest]]:
    with ExitStack() as stack:

        def start(code: str) -> Guest:
            guest = Guest(client, tmp_path, code)
            stack.callback(guest.close)
            return guest

        yield start


def test_files_are_read_written_and_listed(start: Callable[[str], Guest], client: FakeClient) -> None:
    result = start("""
        os.chdir("/work")
        os.makedirs("out/d/e")
        with open("out/d/e/f", "w") as file:
            file.write("hello" * 1000)
        os.rename("out/d/e/f", "out/d/g")
        with open("out/d/g", "a") as file:
            file.write("!")
            file.flush()
            os.fsync(file.fileno())
        os.truncate("out/d/g", 3)
        os.chmod("out/d/g", 0o600)
        os.utime("out/d/g", ns=(5, 7))
        found = os.stat("out/d/g")
        result = [
            open("in/x.txt").read(), os.listdir("in"), sorted(os.listdir("/work/out/d")), open("out/d/g").read(),
            [found.st_size, found.st_mode, found.st_uid, found.st_mtime_ns], os.getcwd(), os.statvfs("out").f_namemax,
        ]
        shutil.rmtree("out/d")
        """).result()
    assert result == [
        "line one\nline two\n",
        ["x.txt"],
        ["e", "g"],
        "hel",
        [3, stat.S_IFREG | 0o600, 1000, 7],
        "/work",
        255,
    ]
    assert len(client.synced) == 1
    assert [path for path in client.things if path.startswith("/work/out/")] == []
    assert client.handles == {}


def test_what_is_not_allowed_is_denied_or_not_there(start: Callable[[str], Guest], client: FakeClient) -> None:
    guest = start("""
        os.chdir("/work")
        result = [
            attempt(open, "/home/ann/.netrc"), attempt(open, "secret"), attempt(open, "/work/in/x.txt", "a"),
            attempt(open, "/var/log/x", "w"), attempt(os.mkdir, "/srv"), attempt(os.listdir, "/work"),
            attempt(os.listdir, "/"), attempt(os.stat, "/sys/x/y"), attempt(os.stat, "/sealed"),
            attempt(os.mkfifo, "/work/out/p"), attempt(os.link, "/work/in/x.txt", "/work/out/l"),
            attempt(os.symlink, "a", "/work/out/s"), os.path.isdir("/usr"), os.path.isdir("/opt/adyton/lib"),
            attempt(os.rename, "in", "/work/out/in"), attempt(os.open, "../home/ann/x", os.O_WRONLY | os.O_CREAT),
        ]
        """)
    guest.wanted_by = GuestThreads(guest.pid)
    assert guest.result() == [
        *["EACCES"] * 8, "ENOENT", "EPERM", "EACCES", None, True, True, "EACCES", "EACCES",
    ]  # fmt: skip
    assert client.denied == [
        ("/home/ann/.netrc", "read"),
        ("/work/secret", "read"),
        ("/work/in/x.txt", "write"),
        ("/var/log/x", "write"),
        ("/srv", "write"),
        ("/work", "read"),
        ("/", "read"),
        ("/sys/x/y", "read"),
        ("/work/in/x.txt", "write"),
        ("/work/in", "write"),
        ("/home/ann/x", "write"),
    ]


def test_links_and_mapped_memory_and_descriptors_are_the_kernel_own(
    start: Callable[[str], Guest], client: FakeClient
) -> None:
    client.link("/work/in/good", "x.txt")
    client.link("/work/in/bad", "/proc/self/mem")
    client.link("/work/in/away", "/home/ann/.netrc")
    result = start("""
        os.chdir("/work/out")
        with open("m", "wb") as file:
            file.write(bytes(10000))
        log = open("m", "ab", buffering=0)
        with open("m", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[5000:5005] = b"hello"
            memory.flush()
        log.write(b"end")
        reader = open("../in/x.txt", "rb", buffering=0)
        first = reader.read(5)
        if os.fork() == 0:
            reader.read(4)
            os._exit(0)
        os.wait()
        unlinked = open("u", "w+b", buffering=0)
        os.unlink("u")
        unlinked.write(b"12345")
        result = [
            open("m", "rb").read()[5000:5005].decode(), os.stat("m").st_size, reader.read().decode(),
            os.fstat(unlinked.fileno()).st_size, os.pread(unlinked.fileno(), 9, 2).decode(),
            open("/work/in/good").read(8), attempt(open, "/work/in/bad"), attempt(open, "/work/in/away"),
            select.select([reader], [], [], 0)[0] == [reader],
        ]
        """).result()
    assert result == ["hello", 10003, "line two\n", 5, "345", "line one", "EACCES", "EACCES", True]
    assert client.things["/work/out/m"].data[4999:5006] == b"\0hello\0"
    assert client.things["/work/out/m"].data[10000:] == b"end"


def test_what_another_program_changed_shows_when_a_file_is_opened_again(
    start: Callable[[str], Guest], client: FakeClient
) -> None:
    guest = start("""
        first = open("/work/in/x.txt").read()
        os.chmod("/work/out", 0o755)
        result = [first, open("/work/in/x.txt").read(), os.path.exists("/work/in/y"), attempt(os.stat, "/work/in/x.txt/z")]
        """)

    def changed(request: abi.Request) -> bool:
        if isinstance(request, abi.SetAttributes):
            client.things["/work/in/x.txt"].data[:] = b"LINE ONE, longer than it was before"
            client.file("/work/in/y")
        return False

    guest.withhold = changed
    assert guest.result() == ["line one\nline two\n", "LINE ONE, longer than it was before", True, "ENOTDIR"]


def test_large_files_and_many_threads(start: Callable[[str], Guest], client: FakeClient) -> None:
    result = start("""
        data = os.urandom(5 << 20)
        def work(number):
            path = f"/work/out/{number}"
            with open(path, "wb") as file:
                file.write(data[number:])
            results.append(open(path, "rb").read() == data[number:])
        results = []
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        result = results
        """).result()
    assert result == [True] * 4
    assert len(client.things["/work/out/3"].data) == (5 << 20) - 3
    assert max(len(request.data) for request in client.log if isinstance(request, abi.Write)) > 1 << 17


def test_a_private_tmp_is_an_ordinary_file_system(start: Callable[[str], Guest], client: FakeClient) -> None:
    result = start("""
        tempfile.tempdir = "/tmp"
        with tempfile.TemporaryDirectory() as directory:
            with sqlite3.connect(directory + "/t.db") as database:
                database.execute("create table t(a)")
                database.executemany("insert into t values(?)", [(i,) for i in range(1000)])
            rows = database.execute("select sum(a) from t").fetchone()[0]
            database.close()
            os.symlink("t.db", directory + "/link")
            size = os.stat(directory + "/link").st_size
        with tempfile.TemporaryFile() as file, tempfile.NamedTemporaryFile() as named:
            file.write(b"x" * 100000)
            file.seek(99999)
            tail = file.read().decode()
            crossing = attempt(os.rename, named.name, "/tmp/shared/x")
        with open("/tmp/shared/y", "w") as file:
            file.write("the client's")
        result = [rows, size > 4096, tail, crossing, sorted(os.listdir("/tmp")), os.listdir("/tmp/shared")]
        """).result()
    assert result == [499500, True, "x", "EXDEV", ["shared"], ["y"]]
    assert client.things["/tmp/shared/y"].data == b"the client's"
    assert [path for path in client.things if path.startswith("/tmp")] == ["/tmp", "/tmp/shared", "/tmp/shared/y"]


def test_a_database_on_the_client(start: Callable[[str], Guest], client: FakeClient) -> None:
    result = start("""
        os.chdir("/work/out")
        for number in range(2):
            with sqlite3.connect("t.db") as database:
                database.execute("create table if not exists t(a)")
                database.executemany("insert into t values(?)", [(i,) for i in range(100)])
            database.close()
        database = sqlite3.connect("t.db")
        result = database.execute("select count(*), sum(a) from t").fetchone()
        """).result()
    assert result == [200, 9900]
    assert client.things["/work/out/t.db"].data.startswith(b"SQLite format 3")
    assert client.synced


def test_a_signal_ends_a_wait_for_the_client_and_what_it_opened_is_closed(
    start: Callable[[str], Guest], client: FakeClient
) -> None:
    guest = start("""
        def alarm(number, frame):
            raise TimeoutError("late")
        signal.signal(signal.SIGALRM, alarm)
        try:
            open("/work/in/x.txt")
        except TimeoutError as error:
            result = str(error)
        """)

    def opening(request: abi.Request) -> bool:
        if isinstance(request, abi.Open):
            os.kill(guest.pid, signal.SIGALRM)  # now that it waits, however long it took to get there
            return True
        return False

    guest.withhold = opening
    assert guest.result() == "late"
    (ask,) = guest.withheld
    opened = check(ask.request, msgspec.msgpack.encode(client.execute(ask.request)))
    assert len(client.handles) == 1
    guest.do(guest.server.resume(ask.ticket, opened))
    assert client.handles == {}


def test_a_lying_client_is_an_error_and_nothing_else(start: Callable[[str], Guest], client: FakeClient) -> None:
    guest = start("""
        result = [attempt(os.stat, "/work/in/x.txt"), attempt(os.listdir, "/work/in"), os.path.isdir("/usr")]
        """)
    honest = client.execute

    def lie(request: abi.Request) -> abi.Result:
        result = honest(request)
        if request == abi.Stat("/work/in/x.txt"):
            return abi.Data(b"what?")
        if isinstance(request, abi.List):
            return abi.Entries([abi.Entry("../../usr", client.attributes(client.things["/work"]))], 0)
        return result

    client.execute = lie  # type: ignore[method-assign]
    assert guest.result() == ["EIO", "EIO", True]


def test_what_a_program_may_ask_but_a_host_call_cannot_carry(start: Callable[[str], Guest], client: FakeClient) -> None:
    result = start("""
        def code(function, *arguments, **named):
            try:
                return function(*arguments, **named)
            except OSError as error:
                return error.errno
        result = []
        for path in ("/work/out/f", "/tmp/f"):
            open(path, "w").close()
            os.mkdir(path + ".d")
            os.utime(path, (2**40, 2**40))
            result.append([
                os.stat(path).st_mtime_ns,
                code(os.open, path, os.O_ACCMODE),
                code(os.rename, path + ".d", path + ".d/e"),
            ])
        """).result()
    latest = (1 << 63) - 1
    assert result == [[latest, errno.EINVAL, errno.EINVAL]] * 2
    for request in client.log:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=abi.Request) == request
