"""What an enclave does to the client's files equals what the same program does that runs on the client.

HYPOTHESIS_EXAMPLES sets how many sequences of operations are tried.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import file_operations
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

import adyton
from adyton.config import Policy

pytestmark = pytest.mark.sandbox
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "16"))
BLOCK = 4096

NAMES = ["a", "b", "c", "d", "d/a", "d/e", "d/e/a", "d/c", "l", "d/l", "\udcff", "d/\udcff", "\U0010ffff", ""]
names = st.sampled_from(NAMES)
slots = st.integers(0, 3)
offsets = st.sampled_from([0, 1, 5, BLOCK - 1, BLOCK, 3 * BLOCK, 70_000])
sizes = st.sampled_from([0, 1, 7, BLOCK, 2 * BLOCK + 3, 70_000])
texts = st.sampled_from(["", "x", "hello", "block" * 1000, "large" * 30_000])
# An ordinary user keeps the right to all of it here: private files have modes, and no permissions.
modes = st.sampled_from([0o600, 0o644, 0o755, 0o777, 0o400] if os.geteuid() == 0 else [0o700, 0o744, 0o755, 0o777])
keys = st.sampled_from(
    ["user.a", "user.a", "user.b", "user." + "k" * 250, "user.\udcff", "user.", "nothing"]
)  # others depend on who runs it
values = st.sampled_from(["", "value", "value" * 40])  # more is a question of the file system
times = st.integers(0, file_operations.LONG_AGO - 1)
targets = st.sampled_from(["a", "d/a", "./a", "l", "nowhere", "e/a", "../a", "d", "d/\udcff"])
accesses = st.sampled_from(["O_RDONLY", "O_WRONLY", "O_RDWR", "O_RDWR", "O_RDWR"])
more_flags = st.lists(
    st.sampled_from(
        [
            "O_CREAT",
            "O_CREAT",
            "O_CREAT",
            "O_EXCL",
            "O_TRUNC",
            "O_APPEND",
            "O_DIRECTORY",
            "O_NOFOLLOW",
            "O_SYNC",
            "O_DSYNC",
        ]
    ),
    unique=True,
    max_size=3,
)
flags = st.builds(lambda access, more: [access, *more], accesses, more_flags)
locks = st.sampled_from([1, 2, 8])  # LOCK_SH, LOCK_EX, LOCK_UN

START: list[list[Any]] = [  # what there is to begin with
    ["mkdir", "d", 0o755],
    ["mkdir", "d/e", 0o755],
    ["open", 0, "a", ["O_RDWR", "O_CREAT"], 0o644],
    ["write", 0, "first file" * 900],
    ["open", 1, "d/a", ["O_RDWR", "O_CREAT", "O_APPEND"], 0o644],
    ["write", 1, "second"],
    ["open", 2, "b", ["O_RDWR", "O_CREAT"], 0o600],
    ["symlink", "d/a", "l"],
    ["open", 3, "", ["O_RDWR", "O_TMPFILE"], 0o600],
]

OPERATIONS: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "open": (slots, names, flags, modes),
    "open ": (slots, st.sampled_from(["", "d", "a"]), st.sampled_from([["O_RDWR", "O_TMPFILE"], ["O_PATH"]]), modes),
    "close": (slots,),
    "read": (slots, sizes),
    "pread": (slots, sizes, offsets),
    "write": (slots, texts),
    "write ": (slots, texts),
    "pwrite": (slots, texts, offsets),
    "pwrite ": (slots, texts, offsets),
    "lseek": (slots, offsets, st.sampled_from([0, 1, 2, os.SEEK_DATA, os.SEEK_HOLE])),
    "ftruncate": (slots, sizes),
    "truncate": (names, sizes),
    "fallocate": (slots, st.sampled_from([0, 1, 2, 3, 16, 17, 0x80]), offsets, sizes),
    "fsync": (slots,),
    "fdatasync": (slots,),
    "fstat": (slots,),
    "stat": (names,),
    "lstat": (names,),
    "mkdir": (names, modes),
    "mkdir ": (st.sampled_from(["d", "d/e"]), st.just(0o755)),
    "mknod": (names, st.just(stat.S_IFREG | 0o640)),
    "rmdir": (names,),
    "unlink": (names,),
    "rename": (names, names),
    "renameat2": (names, names, st.integers(0, 3)),
    "link": (names, names),
    "link ": (st.sampled_from(["a", "b", "d/a", "l"]), st.sampled_from(["c", "d/c", "d/e/c"])),
    "link_open": (st.sampled_from([0, 3, 3, 3]), st.sampled_from(["c", "c", "d/c", "a"])),
    "symlink": (targets, names),
    "readlink": (st.sampled_from(["l", "l", "d/l", "a", "\udcff", ""]),),
    "chmod": (names, modes),
    "fchmod": (slots, modes),
    "utime": (names, times, times),
    "futime": (slots, times),
    "chown": (names,),
    "setxattr": (names, keys, values, st.integers(0, 2)),
    "fsetxattr": (slots, keys, values),
    "setxattr ": (st.sampled_from(["a", "d"]), keys, st.just("value"), st.just(0)),
    "getxattr": (names, keys),
    "listxattr": (names,),
    "flistxattr": (slots,),
    "removexattr": (names, keys),
    "listdir": (names,),
    "access": (names,),
    "copy": (slots, offsets, slots, offsets, sizes),
    "sendfile": (slots, offsets, slots, sizes),
    "flock": (slots, locks),
    "lockf": (slots, locks, offsets, offsets),
    "map": (slots, st.sampled_from(["m", "mapped" * 50])),
    "map_private": (slots, st.sampled_from([1, 9])),
}
operations = st.sampled_from(sorted(OPERATIONS)).flatmap(
    lambda name: st.tuples(st.just(name.strip()), *OPERATIONS[name]).map(list)
)
sequences = st.lists(st.lists(operations, min_size=1, max_size=8), min_size=1, max_size=6)

NOT_UTF8: list[
    list[list[Any]]
] = [  # names of bytes that are none, a private character, and what looks like that of U+10FFFF on the wire
    [
        ["open", 0, "\udcff", ["O_RDWR", "O_CREAT"], 0o644],
        ["write", 0, "content"],
        ["setxattr", "\udcff", "user.\udcff", "value", 0],
        ["listxattr", "\udcff"],
        ["mkdir", "caf\udce9", 0o755],
        ["rename", "\udcff", "caf\udce9/\U0010ffff"],
        ["link", "caf\udce9/\U0010ffff", "caf\udce9/\U0010fff4\U0010ff8f\U0010ffbf\U0010ffbf"],
        ["symlink", "caf\udce9/\U0010ffff", "\udc80"],
        ["readlink", "\udc80"],
        ["listdir", ""],
    ],
    [
        ["listdir", "caf\udce9"],
        ["stat", "\udc80"],
        ["lstat", "\udcff"],
        ["renameat2", "caf\udce9", "d/\udcff", 1],
        ["open", 1, "d/\udcff/\U0010ffff", ["O_RDONLY"], 0],
        ["read", 1, 7],
        ["unlink", "d/\udcff/\U0010ffff"],
        ["listdir", "d/\udcff"],
        ["rmdir", "d/\udcff"],
        ["mkdir", "\udcff" * 256, 0o755],
        ["mkdir", "\udcff" * 255, 0o755],
    ],
]


def tree(folder: Path, *, holes: bool) -> dict[str, Any]:
    """All below a folder: kinds, modes, sizes, content, where data is if that is certain, names of one file, links, extended attributes, set times."""
    found: dict[str, Any] = {}
    same: dict[int, str] = {}
    for above, directories, files in os.walk(folder):
        directories.sort()
        for name in sorted(directories + files):
            path = os.path.join(above, name)
            status = os.lstat(path)
            entry: list[Any] = file_operations.shown(status)
            entry.append({key: os.getxattr(path, key, follow_symlinks=False) for key in extended(path)})
            if stat.S_ISLNK(status.st_mode):
                entry.append(os.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                entry.append(same.setdefault(status.st_ino, os.path.relpath(path, folder)))
                entry += content(path, holes=holes)
            found[os.path.relpath(path, folder)] = entry
    return found


def extended(path: str) -> list[str]:
    return [key for key in os.listxattr(path, follow_symlinks=False) if key.startswith("user.")]


def content(path: str, *, holes: bool) -> list[Any]:
    """Bytes, and which blocks hold data, with `holes`."""
    blocks: set[int] = set()
    with open(path, "rb") as file:
        at = 0
        while holes:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            blocks.update(range(start // BLOCK, -(-at // BLOCK)))
        file.seek(0)
        return [file.read(), blocks]


HOLES = {("lseek", os.SEEK_DATA), ("lseek", os.SEEK_HOLE)}
UNWRITTEN = {0, 1, 16, 17}  # modes of fallocate


def holes_are_certain(sequence: list[list[list[Any]]]) -> bool:
    """Room that nobody wrote to is a hole, unless the page cache has it: which depends on who has read ahead (ext4, XFS)."""
    return not any(each[0] == "fallocate" and each[2] in UNWRITTEN for part in sequence for each in part)


class Pair:
    """An enclave that may write one folder, and another folder for the same program here."""

    def __init__(self, enclave: adyton.Enclave, home: Path) -> None:
        self.enclave = enclave
        self.home = home
        self.numbers = itertools.count()

    def run_privately(self, sequence: list[list[list[Any]]]) -> None:
        """The same in the enclave's private files. These have no holes, and nobody else sees them."""
        number = str(next(self.numbers))
        there, here = f"/tmp/private{number}", self.home / "local" / number
        self.enclave.call("begin", there)
        here.mkdir()
        try:
            for each_part in (START, *sequence):
                part = [each for each in each_part if each[0] != "fallocate" and (each[0], each[-1]) not in HOLES]
                text = json.dumps(part)
                got = json.loads(self.enclave.call("perform", there, text))
                expected = json.loads(file_operations.perform(str(here), text))
                assert list(zip(part, got, strict=True)) == list(zip(part, expected, strict=True))
        finally:
            self.enclave.call("end", there)
            file_operations.end(str(here))
            shutil.rmtree(here, ignore_errors=True)

    def run(self, sequence: list[list[list[Any]]]) -> None:
        number = str(next(self.numbers))
        there, here = self.home / "enclave" / number, self.home / "local" / number
        there.mkdir()
        here.mkdir()
        holes = holes_are_certain(sequence)
        try:
            for each_part in (START, *sequence):
                part = [each for each in each_part if holes or (each[0], each[-1]) not in HOLES]
                text = json.dumps(part)
                got = json.loads(self.enclave.call("perform", str(there), text))
                expected = json.loads(file_operations.perform(str(here), text))
                assert list(zip(part, got, strict=True)) == list(zip(part, expected, strict=True))
                assert tree(there, holes=holes) == tree(here, holes=holes), part
        finally:
            self.enclave.call("end", str(there))
            file_operations.end(str(here))
            for folder in (there, here):
                shutil.rmtree(folder, ignore_errors=True)  # it may have removed itself


@pytest.fixture(scope="module", params=["strict", "close-to-open", "exclusive"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    home = tmp_path_factory.mktemp("equal")
    policy = Policy.parse(f'[[mount]]\npath = "{home}"\ncoherence = "{request.param}"\n', name="test", base="/")
    (home / "enclave").mkdir()
    (home / "local").mkdir()
    with adyton.load(file_operations.__file__, policy=policy, allow_write=[str(home / "enclave")]) as enclave:
        yield Pair(enclave, home)


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(sequence=sequences)
@example(sequence=[[["fallocate", 1, 0, 0, 8195], ["map", 1, "m"]]])
@example(sequence=NOT_UTF8)
def test_any_operations_have_the_same_effect_and_the_same_answers(pair: Pair, sequence: list[list[list[Any]]]) -> None:
    pair.run(sequence)


@settings(max_examples=EXAMPLES // 2, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(sequence=sequences)
@example(sequence=[[["open", 0, "d", ["O_RDONLY"], 384], ["lseek", 0, 0, 2]]])
@example(sequence=NOT_UTF8)
def test_private_files_give_the_same_answers(pair: Pair, sequence: list[list[list[Any]]]) -> None:
    pair.run_privately(sequence)
