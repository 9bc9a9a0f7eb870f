"""What another program on the client does to a name while the enclave looks at it: seen from the client's next word on, in each coherence.

The enclave looks often enough, just before, for its kernel to know the name without asking; so far as it may: not in the second after
another such change, see `leases`. Hence some of it once more, each in an enclave of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sharing import Sharing

pytestmark = pytest.mark.sandbox

PROGRAM = '''
import os, stat
import adyton.trusted as trusted

@trusted.host_function
def tell(text: str) -> str: ...

def shown(path: str) -> str:
    found = os.lstat(path)
    if stat.S_ISDIR(found.st_mode):
        return f"directory of {sorted(os.listdir(path))}"
    if stat.S_ISLNK(found.st_mode):
        return f"link to {os.path.basename(os.readlink(path))}"
    return f"file of {found.st_size}"

def content(path: str) -> str:
    with open(path) as file:
        return file.read()

LOOKS = {
    "stat": lambda path: f"{os.stat(path).st_size}",
    "shown": shown,
    "content": content,
    "names": lambda path: f"{sorted(os.listdir(path))}",
    "within": lambda path: content(path + "/within"),
    "mode": lambda path: (os.chmod(path, 0o600), "set")[1],
    "unfollowed": lambda path: (os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)), "a file")[1],
    "itself": lambda path: (os.close(os.open(path, os.O_PATH)), shown(path))[1],
    "exists": lambda path: f"{os.path.exists(path)}",
    "unlink": lambda path: (os.unlink(path), "gone")[1],
    "rmdir": lambda path: (os.rmdir(path), "gone")[1],
}

def look(how: str, path: str) -> str:
    try:
        return LOOKS[how](path)
    except OSError as error:
        return type(error).__name__

def looks(how: str, path: str, keep: bool) -> list[str]:
    """The name again and again; then the client changes it, and it is looked at in one way."""
    kept = open(path, "rb", buffering=0) if keep else None
    for _ in range(5):
        before = look("shown", path)
    tell("change")
    seen = [before, look(how, path)]
    if kept is not None:
        seen += [f"{os.fstat(kept.fileno()).st_size}", kept.read().decode()]
        kept.close()
    return seen

def again(path: str, remove: bool) -> list[str]:
    """What is open, opened once more after the client, or this program, removed its name."""
    with open(path, "r+b", buffering=0) as kept:
        look("shown", path)
        if remove:
            os.unlink(path)
        tell("change")
        link = f"/proc/self/fd/{kept.fileno()}"
        seen = [look("stat", link), look("content", link), look("exists", path)]
        with open(link, "ab") as more:
            more.write(b"+more")
        with open(link, "rb") as other:
            seen.append(other.read().decode())
            kept.close()
            other.seek(0)
            seen.append(other.read().decode())
    return seen
'''


class Names(Sharing):
    def __init__(self, home: Path, coherence: str) -> None:
        (home / "program.py").write_text(PROGRAM)
        super().__init__(home, coherence)

    def looks(self, how: str, path: Path, change: Callable[[], object], *, keep: bool = False) -> list[str]:
        self.change = change
        return self.enclave.call("looks", how, str(path), keep)


@pytest.fixture(scope="module", params=["strict", "close-to-open", "exclusive"])
def shared(request, tmp_path_factory) -> Iterator[Names]:
    shared = Names(tmp_path_factory.mktemp("names"), request.param)
    yield shared
    shared.enclave.close()


@pytest.fixture
def path(shared: Names) -> Iterator[Path]:
    yield shared.path / "name"
    for each in os.listdir(shared.path):
        found = shared.path / each
        shutil.rmtree(found) if found.is_dir() and not found.is_symlink() else found.unlink()


def replace(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    os.rename(new, path)


@pytest.mark.parametrize(
    ("how", "seen"), [("stat", "5"), ("shown", "file of 5"), ("content", "other"), ("exists", "True"), ("mode", "set")]
)
@pytest.mark.parametrize("keep", [False, True])
def test_a_file_that_is_replaced(shared: Names, path: Path, how: str, seen: str, keep: bool) -> None:
    path.write_text("one")
    path.chmod(0o644)
    assert shared.looks(how, path, lambda: replace(path, "other"), keep=keep) == [
        "file of 3",
        seen,
        *(["3", "one"] if keep else []),
    ]
    if how == "mode":
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("how", "seen"), [("stat", "FileNotFoundError"), ("exists", "False")])
@pytest.mark.parametrize("keep", [False, True])
def test_a_file_that_is_removed(shared: Names, path: Path, how: str, seen: str, keep: bool) -> None:
    path.write_text("one")
    assert shared.looks(how, path, path.unlink, keep=keep) == ["file of 3", seen, *(["3", "one"] if keep else [])]


def test_a_file_that_is_renamed(shared: Names, path: Path) -> None:
    path.write_text("one")
    moved = path.with_name("moved")
    assert shared.looks("stat", path, lambda: path.rename(moved), keep=True) == [
        "file of 3",
        "FileNotFoundError",
        "3",
        "one",
    ]
    assert shared.looks("stat", moved, lambda: None) == ["file of 3", "3"]


@pytest.mark.parametrize("how", ["stat", "exists", "content"])
def test_a_name_that_was_not_there(shared: Names, path: Path, how: str) -> None:
    seen = {"stat": "3", "exists": "True", "content": "new"}[how]
    assert shared.looks(how, path, lambda: path.write_text("new")) == ["FileNotFoundError", seen]


def directory(path: Path, text: str) -> None:
    path.mkdir()
    (path / "within").write_text(text)


@pytest.mark.parametrize(
    ("how", "seen"), [("names", "['within']"), ("within", "x"), ("shown", "directory of ['within']")]
)
@pytest.mark.parametrize("keep", [False, True])
def test_a_file_in_whose_place_is_a_directory(shared: Names, path: Path, how: str, seen: str, keep: bool) -> None:
    path.write_text("one")
    found = shared.looks(how, path, lambda: (path.unlink(), directory(path, "x")), keep=keep)
    assert found[:2] == ["file of 3", seen]


@pytest.mark.parametrize(("how", "seen"), [("unfollowed", "a file"), ("content", "other"), ("itself", "file of 5")])
def test_a_link_in_whose_place_is_a_file(shared: Names, path: Path, how: str, seen: str) -> None:
    path.with_name("target").write_text("one")
    path.symlink_to("target")
    assert shared.looks(how, path, lambda: replace(path, "other")) == ["link to target", seen]


@pytest.mark.parametrize(("how", "seen"), [("content", "target's"), ("shown", "link to target"), ("stat", "8")])
@pytest.mark.parametrize("keep", [False, True])
def test_a_file_in_whose_place_is_a_link(shared: Names, path: Path, how: str, seen: str, keep: bool) -> None:
    path.with_name("target").write_text("target's")
    path.write_text("one")
    found = shared.looks(how, path, lambda: (path.unlink(), path.symlink_to("target")), keep=keep)
    assert found[:2] == ["file of 3", seen]


@pytest.mark.parametrize("how", ["rmdir", "itself"])
def test_an_empty_directory_in_the_place_of_a_file(shared: Names, path: Path, how: str) -> None:
    path.write_text("one")
    seen = {"rmdir": "gone", "itself": "directory of []"}[how]
    assert shared.looks(how, path, lambda: (path.unlink(), path.mkdir())) == ["file of 3", seen]


@pytest.mark.parametrize(
    ("how", "seen"), [("names", "['within']"), ("within", "other"), ("shown", "directory of ['within']")]
)
def test_a_directory_that_is_replaced(shared: Names, path: Path, how: str, seen: str) -> None:
    directory(path, "one")
    new = path.with_name("new")
    directory(new, "other")
    assert shared.looks(how, path, lambda: (path.rename(path.with_name("old")), new.rename(path))) == [
        "directory of ['within']",
        seen,
    ]


@pytest.mark.parametrize(("how", "seen"), [("content", "file"), ("shown", "file of 4"), ("unlink", "gone")])
def test_a_directory_in_whose_place_is_a_file(shared: Names, path: Path, how: str, seen: str) -> None:
    path.mkdir()
    assert shared.looks(how, path, lambda: (path.rmdir(), path.write_text("file"))) == ["directory of []", seen]


@pytest.mark.parametrize("how", ["by the enclave", "by others", "replaced"])
def test_what_is_open_is_opened_again_though_its_name_is_gone(shared: Names, path: Path, how: str) -> None:
    path.write_text("one")
    shared.change = {"by the enclave": lambda: None, "by others": path.unlink, "replaced": lambda: replace(path, "x")}[
        how
    ]
    seen = shared.enclave.call("again", str(path), how == "by the enclave")
    assert seen == ["3", "one", str(how == "replaced"), "one+more", "one+more"]
    if how == "replaced":
        assert path.read_text() == "x"


# -- at the first change that an enclave is told of, so that its kernel surely believes the name until then ----------------------------------------


@pytest.fixture
def alone(request, tmp_path, on_the_server) -> Iterator[Names]:
    shared = Names(tmp_path, getattr(request, "param", "close-to-open"))
    yield shared
    shared.enclave.close()


@pytest.mark.parametrize("alone", ["close-to-open", "exclusive"], indirect=True)
def test_a_first_file_that_is_replaced_while_it_is_open(alone: Names) -> None:
    path = alone.path / "name"
    path.write_text("one")
    assert alone.looks("stat", path, lambda: replace(path, "other"), keep=True) == ["file of 3", "5", "3", "one"]


def test_a_first_file_that_is_removed_while_it_is_open(alone: Names) -> None:
    path = alone.path / "name"
    path.write_text("one")
    assert alone.looks("exists", path, path.unlink, keep=True) == ["file of 3", "False", "3", "one"]


def test_a_first_file_in_whose_place_is_a_directory(alone: Names) -> None:
    path = alone.path / "name"
    path.write_text("one")
    seen = alone.looks("names", path, lambda: (path.unlink(), directory(path, "x")), keep=True)
    assert seen == ["file of 3", "['within']", "3", "one"]


def test_a_first_directory_in_whose_place_is_a_file(alone: Names) -> None:
    path = alone.path / "name"
    path.mkdir()
    seen = alone.looks("unlink", path, lambda: (path.rmdir(), path.write_text("file")))
    assert seen == ["directory of []", "gone"]
    assert not path.exists()


def test_a_first_directory_above_a_file_that_is_replaced(alone: Names) -> None:
    above, new = alone.path / "above", alone.path / "new"
    directory(above, "one")
    directory(new, "other")
    seen = alone.looks(
        "stat", above / "within", lambda: (above.rename(alone.path / "old"), new.rename(above)), keep=True
    )
    assert seen == ["file of 3", "5", "3", "one"]
