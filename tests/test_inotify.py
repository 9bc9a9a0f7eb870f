"""inotify in an enclave: the events of what its programs do, as on one machine, and of what other programs on the client do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from enclave_sockets import enclave
from inotify_calls import SOURCE, Local

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    place = tmp_path_factory.mktemp("inotify")
    (place / "client").mkdir()
    with enclave(place, allow_write=[str(place / "client")], allow_read=[str(place / "other")]) as found:
        found.place, found.local = place / "client", Local()
        found.run(
            f"import builtins\nnames = {{}}\nexec({SOURCE!r}, names)\nfor name in names:\n    setattr(builtins, name, names[name])"
        )
        yield found
        found.local.close()


@pytest.fixture
def folder(at_work) -> Path:
    return Path(tempfile.mkdtemp(dir=at_work.place))


def others(code: str, folder: Path) -> None:
    """Another program on the client at work."""
    subprocess.run([sys.executable, "-c", f"import os, sys; os.chdir(sys.argv[1])\n{code}", str(folder)], check=True)


# What a program does with a file `old`, a file `link` that is the same, a directory `sub` with a file `in`, and a symbolic link `symbolic`.
DEEDS = {
    "create": "open('new', 'x').close()",
    "write": "with open('old', 'a') as file:\n    file.write('more')",
    "write twice": "f = os.open('old', os.O_WRONLY); os.write(f, b'1'); inotify.until('MODIFY'); os.write(f, b'2'); os.close(f)",
    "write nothing": "f = os.open('old', os.O_WRONLY); os.write(f, b''); os.close(f)",
    "truncate by opening": "open('old', 'w').close()",
    "truncate": "os.truncate('old', 2)",
    "truncate what is open": "with open('old', 'r+') as file:\n    file.truncate(1)",
    "read": "with open('old') as file:\n    file.read()",
    "open and close": "os.close(os.open('old', os.O_RDONLY))",
    "open and close a file to write": "os.close(os.open('old', os.O_RDWR))",
    "open the path alone": "os.close(os.open('old', os.O_PATH))",
    "look": "os.stat('old'), os.access('old', os.R_OK), os.path.exists('nothing')",
    "list": "f = os.open('sub', os.O_RDONLY); os.listdir(f); os.close(f)",
    "mode": "os.chmod('old', 0o600)",
    "times": "os.utime('old', (1, 1))",
    "extended attributes": "os.setxattr('old', 'user.a', b'b'); inotify.until('ATTRIB'); os.removexattr('old', 'user.a')",
    "allocate": "with open('old', 'r+') as file:\n    os.posix_fallocate(file.fileno(), 0, 10)",
    "mkdir": "os.mkdir('new')",
    "not utf-8": "os.mkdir(b'\\xff'); os.rename(b'\\xff', b'sub/caf\\xe9'); os.symlink(b'\\xfe', b'\\x80'); os.rename(b'sub/caf\\xe9', b'\\xc3')",
    "rmdir": "os.unlink('sub/in'); os.rmdir('sub')",
    "unlink": "os.unlink('old')",
    "unlink the last": "os.unlink('old'); os.unlink('link')",
    "unlink what is open": "f = os.open('sub/in', os.O_RDWR); os.unlink('sub/in'); os.write(f, b'x'); os.close(f)",
    "link": "os.link('old', 'third')",
    "symbolic link": "os.symlink('old', 'new')",
    "rename": "os.rename('old', 'new')",
    "rename into": "os.rename('old', 'sub/old')",
    "rename out of": "os.rename('sub/in', 'in')",
    "rename over": "os.rename('sub/in', 'old')",
    "rename over the last": "os.unlink('link'); os.rename('sub/in', 'old')",
    "unlink one that has no other name": "os.unlink('sub/in')",
    "rename to the same": "os.rename('old', 'link')",
    "rename a directory": "os.rename('sub', 'bus'); open('bus/new', 'w').close()",
    "exchange": "called(libc.renameat2(-100, b'old', -100, b'sub/in', 2))",
    "of a move away and back": "os.rename('old', 'sub/x'); os.rename('sub/x', 'old')",
    "copy": "shutil.copyfile('sub/in', 'copy')",
}
WATCH = """
    import os
    import shutil
    os.chdir(top)
    inotify = Inotify()
    watches = [inotify.watch(each) for each in (top, top + "/sub", top + "/old", top + "/sub/in")]
"""
KEEP = """
    import builtins
    builtins.inotify = inotify
"""
REPORT = """
    result = [watches, inotify.last(top)]
    inotify.close()
    os.chdir("/")
"""


def furnish(folder: Path) -> str:
    (folder / "sub").mkdir(parents=True)
    (folder / "old").write_text("old")
    (folder / "sub/in").write_text("within")
    (folder / "link").hardlink_to(folder / "old")
    (folder / "symbolic").symlink_to("old")
    return str(folder)


def indented(code: str) -> str:
    return "".join(f"    {line}\n" for line in code.splitlines())


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
def test_a_program_is_told_of_what_the_enclave_does_as_on_one_machine(at_work, folder, deed):
    code = WATCH + indented(deed) + REPORT
    here = at_work.local.run(code, top=furnish(folder / "here"))
    assert at_work.run(code, top=furnish(folder / "there")) == here


# What is told of other programs: all but that they open and read; what they do to a file by another of its names, only where it has that.
FOREIGN = {each: DEEDS[each] for each in (
    "create", "write", "truncate", "mode", "times", "mkdir", "rmdir", "symbolic link", "rename", "rename into", "rename out of", "rename over",
    "not utf-8", "unlink", "unlink one that has no other name",
)}  # fmt: skip
UNTOLD = {"OPEN", "CLOSE_NOWRITE", "ACCESS", "OPEN|ISDIR", "CLOSE_NOWRITE|ISDIR", "ACCESS|ISDIR"}


@pytest.mark.parametrize("deed", FOREIGN.values(), ids=FOREIGN)
def test_a_program_is_told_of_what_other_programs_on_the_client_do(at_work, folder, deed):
    here, there = (furnish(folder / each) for each in ("here", "there"))
    code = WATCH + indented(deed) + REPORT
    _, expected = at_work.local.run(code, top=here)
    at_work.run(WATCH + KEEP, top=there)
    others(f"{deed}\nos.mkdir('end')", Path(there))
    told = at_work.run("result = inotify.until('end'); inotify.close()")
    cookies: dict[int, int] = {}
    for event in told:
        event[2] = cookies.setdefault(event[2], len(cookies) + 1) if event[2] else 0
    assert told.pop()[3] == "end"
    # Of a move, what is watched itself may be told before the directory that it goes to.
    assert sorted(told) == sorted(event for event in expected if event[1] not in UNTOLD)
    assert [event for event in told if event[0] <= 2] == [
        event for event in expected if event[0] <= 2 and event[1] not in UNTOLD
    ]


def test_what_others_move_with_a_directory_out_of_what_is_allowed_is_watched_no_more(at_work, folder):
    away = at_work.place.parent / "away"
    (folder / "a/b").mkdir(parents=True)
    code = """
    inotify = Inotify()
    inotify.watch(top + "/a/b")
    inotify.watch(top)
    """
    at_work.run(code + KEEP, top=str(folder))
    os.rename(folder / "a", away)
    (away / "b/plans").touch()
    (folder / "end").mkdir()
    code = """
    result = []
    while not {"IGNORED", "end"} <= {word for event in result for word in (event[1], event[3])}:
        result += inotify.read()
    inotify.close()
    """
    told = at_work.run(code)
    assert [(watch, kind, name) for watch, kind, _, name in told if watch == 1] == [
        (1, "MOVE_SELF", ""),
        (1, "IGNORED", ""),
    ]
    assert [event[3] for event in told if event[0] == 2] == ["a", "end"]


def test_what_the_enclave_does_is_told_once_though_its_client_sees_it_too(at_work, folder):
    code = (
        WATCH
        + """
    for number in range(20):
        with open(f"f{number}", "w") as file:
            file.write("x")
        os.rename(f"f{number}", f"g{number}")
        os.unlink(f"g{number}")
    """
        + REPORT
    )
    _, told = at_work.run(code, top=furnish(folder / "a"))
    kinds = ["CREATE", "OPEN", "MODIFY", "CLOSE_WRITE", "MOVED_FROM", "MOVED_TO", "DELETE"]
    assert [event[1] for event in told] == kinds * 20


def test_names_that_others_change_are_seen_as_they_are_when_it_is_told(at_work, folder):
    """No program sees, after the event, what was before it."""
    look = "    os.listdir(), os.stat('old'), open('old').read()\n"
    at_work.run(WATCH + look + KEEP, top=furnish(folder / "a"))
    for number in range(10):
        others(f"open('next', 'w').write('{number}'); os.rename('next', 'old')", folder / "a")
        code = "inotify.until('old'); result = [open('old').read(), os.path.exists('next')]"
        assert at_work.run("import os\n" + code) == [str(number), False]
    at_work.run("inotify.close(); os.chdir('/')")


def test_a_descriptor_polls_blocks_and_is_inherited_as_any(at_work, folder):
    code = """
    import fcntl, os, select, termios, threading
    os.chdir(top)
    inotify = Inotify(os.O_NONBLOCK)
    result = []
    try:
        inotify.read()
    except BlockingIOError:
        result.append("would block")
    result.append([fcntl.fcntl(inotify.fd, fcntl.F_GETFD), fcntl.fcntl(inotify.fd, fcntl.F_GETFL) & os.O_NONBLOCK])
    first = inotify.watch(top, "CREATE")
    poller = select.epoll()
    poller.register(inotify.fd, select.EPOLLIN | select.EPOLLET)
    open("a", "w").close(); open("b", "w").close()
    result.append(len(poller.poll(60)))
    size = bytearray(4)
    fcntl.ioctl(inotify.fd, termios.FIONREAD, size)
    result.append(int.from_bytes(size, "little"))
    result.append([event[3] for event in inotify.until("b")])
    copy = os.dup(inotify.fd)
    child = os.fork()
    if not child:
        os.close(inotify.fd)
        open("c", "w").close()
        os._exit(0)
    os.waitpid(child, 0)
    inotify.close()
    inotify.fd = copy
    result.append(inotify.until("c")[-1][1:])
    os.set_blocking(copy, True)
    threading.Timer(0.05, lambda: open("d", "w").close()).start()
    result.append(inotify.read()[0][3])
    inotify.remove(first)
    result.append([inotify.watch(top, "DELETE") - first, inotify.read()[0][1]])
    inotify.close()
    os.chdir("/")
    """
    here, there = folder / "here", folder / "there"
    here.mkdir(), there.mkdir()
    assert at_work.run(code, top=str(there)) == at_work.local.run(code, top=str(here))


def test_a_wait_for_events_is_ended_by_a_signal(at_work, folder):
    code = """
    import signal
    class Late(Exception): ...
    def late(*_): raise Late
    inotify = Inotify()
    inotify.watch(top)
    before = signal.signal(signal.SIGALRM, late)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        inotify.read()
    except Late:
        result = "late"
    finally:
        signal.signal(signal.SIGALRM, before)
        inotify.close()
    """
    assert at_work.run(code, top=str(folder)) == "late"


MASKED = {
    "again with another mask": "a = w('sub', 'CREATE'); b = w('sub', 'DELETE'); open('sub/x', 'w').close(); os.unlink('sub/x'); result = a == b",
    "with a mask more": "w('sub', 'CREATE'); w('sub', 'DELETE', 'MASK_ADD'); open('sub/x', 'w').close(); os.unlink('sub/x')",
    "only if new": "w('sub', 'CREATE'); w('sub', 'CREATE', 'MASK_CREATE')",
    "both at once": "w('sub', 'CREATE', 'MASK_CREATE', 'MASK_ADD')",
    "once": "w('sub', 'CREATE', 'ONESHOT'); open('sub/x', 'w').close(); open('sub/y', 'w').close()",
    "a file, only a directory": "w('old', 'ALL', 'ONLYDIR')",
    "a link": "w('symbolic'); os.chmod('old', 0o600)",
    "a link, not followed": "w('symbolic', 'ALL', 'DONT_FOLLOW'); os.chmod('old', 0o600); os.unlink('symbolic')",
    "the same by two names": "result = w('old') == w('sub/../link') == w(top + '//sub/.././symbolic')",
    "nothing": "called(libc.inotify_add_watch(inotify.fd, b'sub', 0))",
    "bits that there are not": "called(libc.inotify_add_watch(inotify.fd, b'sub', 0x1000))",
    "a name that is not there": "w('nothing')",
    "below what is none": "w('old/x')",
    "below what is not there": "w('nothing/x')",
    "an empty path": "w('')",
    "a path that is too long": "w('x' * 5000)",
    "a name that is too long": "w('x' * 300)",
    "a circle": "os.symlink('b', 'a'); os.symlink('a', 'b'); w('a')",
    "by what is no descriptor": "called(libc.inotify_add_watch(9999, b'sub', 0xFFF))",
    "by a file": "called(libc.inotify_add_watch(os.open('old', os.O_RDONLY), b'sub', 0xFFF))",
    "by a pipe": "called(libc.inotify_add_watch(os.pipe()[0], b'sub', 0xFFF))",
    "at no address": "called(libc.inotify_add_watch(inotify.fd, ctypes.c_void_p(1), 0xFFF))",
    "remove what is none": "inotify.remove(77)",
    "remove by a file": "called(libc.inotify_rm_watch(os.open('old', os.O_RDONLY), 1))",
    "remove twice": "a = w('sub'); inotify.remove(a); inotify.remove(a)",
    "flags that there are not": "Inotify(1)",
}  # fmt: skip


@pytest.mark.parametrize("attempt", MASKED.values(), ids=MASKED)
def test_masks_paths_and_wrong_uses_are_answered_as_on_one_machine(at_work, folder, attempt):
    code = f"""
    import os
    os.chdir(top)
    inotify = Inotify()
    w = inotify.watch
    end = w(top, "CREATE")
    result = None
    try:
{"".join("        " + line for line in attempt.splitlines())}
    except OSError as error:
        result = errno.errorcode[error.errno]
    result = [result, inotify.last(top)]
    inotify.close()
    os.chdir("/")
    """.replace("inotify.last(top)", "(w(top, 'CREATE', 'DELETE'), inotify.last(top))[1]")
    here, there = (furnish(folder / each) for each in ("here", "there"))
    assert at_work.run(code, top=there) == at_work.local.run(code, top=here)


REFUSED = {
    "/usr": "EACCES",
    "/enclave": "EACCES",
    "/proc/self": "EACCES",
    "/dev/null": "EACCES",
    "/": "EACCES",
    "/root/secret": "EACCES",
}


@pytest.mark.parametrize(("path", "code"), REFUSED.items())
def test_what_is_not_the_clients_to_allow_is_not_watched(at_work, path, code):
    attempt = "inotify = Inotify()\ntry:\n    inotify.watch(path)\nfinally:\n    inotify.close()"
    assert at_work.fails(attempt, path=path) == code


def test_private_files_are_watched_too(at_work):
    code = """
    import os, tempfile
    top = tempfile.mkdtemp(dir="/tmp")
    inotify = Inotify()
    inotify.watch(top)
    with open(top + "/x", "w") as file:
        file.write("private")
    os.rename(top + "/x", top + "/y")
    result = [event[1:2] + event[3:] for event in inotify.last(top)]
    inotify.close()
    """
    assert at_work.run(code) == [
        ["CREATE", "x"],
        ["OPEN", "x"],
        ["MODIFY", "x"],
        ["CLOSE_WRITE", "x"],
        ["MOVED_FROM", "x"],
        ["MOVED_TO", "y"],
    ]


def test_instances_and_watches_are_bounded_and_come_back(at_work, folder):
    furnish(folder / "a")
    code = """
    import os
    made = []
    try:
        while True:
            made.append(Inotify())
    except OSError as error:
        result = [errno.errorcode[error.errno], len(made)]
    for each in made:
        each.close()
    os.chdir(top)
    for number in range(300):
        one = Inotify()
        watch = one.watch(top)
        one.remove(watch)
        one.close()
    """
    assert at_work.run(code, top=str(folder / "a")) == ["EMFILE", 128]


def test_who_never_reads_loses_events_and_is_told_so(at_work):
    code = """
    import os, tempfile
    top = tempfile.mkdtemp(dir="/tmp")
    f = os.open(top + "/f", os.O_RDWR | os.O_CREAT)
    many = [Inotify(os.O_NONBLOCK) for _ in range(120)]
    for each in many:
        each.watch(top)
    for number in range(900):
        os.fchmod(f, 0o600) if number % 2 else os.write(f, b"x")
    found = many[0].until("OVERFLOW")
    result = [len(found) > 600, found[-1]]
    for each in many[1:]:
        each.close()
    os.unlink(top + "/f")
    result.append(many[0].until("f")[-1][1])
    many[0].close()
    os.close(f)
    """
    assert at_work.run(code) == [True, [-1, "OVERFLOW", 0, ""], "DELETE"]


def test_threads_that_watch_remove_and_close_at_once_do_no_harm(at_work, folder):
    furnish(folder / "a")
    code = """
    import os, threading
    os.chdir(top)
    inotify = Inotify(os.O_NONBLOCK)
    def race():
        for _ in range(60):
            try:
                inotify.remove(inotify.watch(top + "/sub"))
            except OSError as error:
                assert error.errno == errno.EINVAL
            own = Inotify()
            own.watch(top + "/old")
            own.close()
    def rename():
        for _ in range(60):
            os.rename("sub", "bus")
            os.rename("bus", "sub")
    def race_with_moves():
        for _ in range(60):
            try:
                inotify.watch(top + "/sub/in")
            except FileNotFoundError:
                pass
    threads = [threading.Thread(target=each) for each in (race, race, rename, race_with_moves)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    inotify.close()
    inotify = Inotify()
    inotify.watch(top + "/sub")
    inotify.watch(top)
    open("sub/x", "w").close()
    result = [event[1] for event in inotify.last(top) if event[3] == "x"]
    inotify.close()
    os.chdir("/")
    """
    assert at_work.run(code, top=str(folder / "a")) == ["CREATE", "OPEN", "CLOSE_WRITE"]


def test_garbage_does_not_reach_the_supervisor(at_work, folder):
    furnish(folder / "a")
    code = """
    import ctypes, os, random
    random.seed(5)
    inotify = Inotify(os.O_NONBLOCK)
    syscall = libc.syscall
    numbers = [libc.inotify_init1, libc.inotify_add_watch, libc.inotify_rm_watch]
    for _ in range(3000):
        call = random.choice(numbers)
        words = [random.choice([0, 1, -1, inotify.fd, 1 << 31, 1 << 63, random.getrandbits(64)]) for _ in range(3)]
        made = call(*map(ctypes.c_uint64, words))
        if made > 2 and call is libc.inotify_init1:
            os.close(made)
    inotify.close()
    result = "alive"
    """
    assert at_work.run(code, top=str(folder / "a")) == "alive"


def test_a_program_that_writes_into_its_own_descriptor_harms_nobody(at_work, folder):
    code = """
    import array, os, socket
    inotify = Inotify(os.O_NONBLOCK)
    inotify.watch(top)
    own = socket.socket(fileno=os.dup(inotify.fd))
    file = os.open(top + "/old", os.O_RDWR)
    for number in range(300):
        try:
            os.write(inotify.fd, b"x" * 10_000)
            own.sendmsg([b"y"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file, inotify.fd]))])
        except BlockingIOError:
            pass
        os.chmod(top, 0o700 + number % 2)
    own.shutdown(socket.SHUT_RDWR)
    own.close()
    inotify.close()
    inotify = Inotify()
    inotify.watch(top)
    os.unlink(top + "/link")
    result = inotify.until("link")[-1][1]
    inotify.close()
    os.close(file)
    """
    furnish(folder / "a")
    assert at_work.run(code, top=str(folder / "a")) == "DELETE"


def test_events_may_be_read_into_pages_that_the_supervisor_has_yet_to_serve(at_work, folder):
    furnish(folder / "a")
    (folder / "a/pages").write_bytes(b"x" * 4096 * 400)
    code = """
    import mmap, os, threading
    inotify = Inotify()
    inotify.watch(top + "/sub")
    with open(top + "/pages", "r+b") as file:
        pages = mmap.mmap(file.fileno(), 0)
    pages.madvise(mmap.MADV_RANDOM)
    ready, done = threading.Event(), threading.Event()
    def work():
        number = 0
        while not done.is_set():
            os.chmod(top + "/sub", 0o700 + number % 2)
            number += 1
    thread = threading.Thread(target=work)
    thread.start()
    with memoryview(pages) as view:
        for number in range(400):
            os.readv(inotify.fd, [view[number * 4096 : number * 4096 + 4096]])
    done.set()
    thread.join()
    result = {number: pages[number * 4096] for number in (0, 399)} == {0: 1, 399: 1}
    inotify.close()
    """
    assert at_work.run(code, top=str(folder / "a")) is True


def test_a_relative_path_is_below_the_working_directory_of_who_gives_it(at_work, folder):
    """Of several processes that make the same call, with the same arguments, at the same time."""
    for name in "ab":
        (folder / name).mkdir()
    code = """
    import ctypes, os
    inotify = Inotify()
    wanted = [inotify.watch(f"{top}/{name}", "CREATE") for name in "ab"]
    path, mask = ctypes.create_string_buffer(b"."), ctypes.c_uint32(MASKS["CREATE"])
    result = []
    for _ in range(20):
        ready, go = os.pipe()
        children = []
        for name in "ab":
            child = os.fork()
            if not child:
                os.close(go)
                os.chdir(f"{top}/{name}")
                os.read(ready, 1)
                os._exit(libc.inotify_add_watch(inotify.fd, path, mask))
            children.append(child)
        os.close(ready)
        os.close(go)
        found = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if found != wanted:
            result.append(found)
    inotify.close()
    """
    assert at_work.run(code, top=str(folder)) == []


def test_a_directory_on_the_client_may_be_watched_many_times_over(at_work, folder):
    for number in range(300):
        (folder / f"d{number}").mkdir()
    code = """
    import os
    inotify = Inotify()
    for number in range(300):
        inotify.watch(f"{top}/d{number}", "CREATE")
    """
    at_work.run(code + KEEP, top=str(folder))
    others("for number in range(300): open(f'd{number}/x', 'w').close()", folder)
    told = at_work.run("result = [event for _ in range(300) for event in inotify.read()]; inotify.close()")
    assert sorted(event[0] for event in told) == list(range(1, 301))
    assert os.path.exists(folder / "d299/x")
    assert {event[1] for event in told} == {"CREATE"}
