"""What a directory that is open lists: all that happened before it is first read, and after it is rewound; and nothing, once it is removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sharing import Sharing

pytestmark = pytest.mark.sandbox

PROGRAM = '''
import os
import adyton.trusted as trusted

@trusted.host_function
def tell(text: str) -> str: ...

def listed(directory: int) -> list[str]:
    return sorted(os.listdir(directory))

def made_after_open(path: str) -> list[list[str]]:
    """A directory's names, by a descriptor from before they were made, were renamed, and were removed."""
    os.makedirs(path, exist_ok=True)
    directory = os.open(path, os.O_RDONLY)
    try:
        os.mkdir(f"{path}/made")
        open("file", "x", opener=lambda name, flags: os.open(name, flags, dir_fd=directory)).close()
        found = [listed(directory)]
        os.rename(f"{path}/file", f"{path}/renamed")
        found.append(listed(directory))
        os.unlink(f"{path}/renamed")
        os.rmdir(f"{path}/made")
        return [*found, listed(directory)]
    finally:
        os.close(directory)

def made_by_others_after_open(path: str) -> list[str]:
    directory = os.open(path, os.O_RDONLY)
    try:
        tell("")
        return listed(directory)
    finally:
        os.close(directory)

def of_removed(path: str) -> list[list[object]]:
    """Of a removed directory: names, by a descriptor and as the working directory, and how many names it has itself."""
    os.mkdir(path)
    before = os.getcwd()
    directory = os.open(path, os.O_RDONLY)
    os.chdir(path)
    try:
        os.rmdir(path)
        os.fsync(directory)
        return [os.listdir(directory), os.listdir("."), [os.fstat(directory).st_nlink, os.stat(".").st_nlink]]
    finally:
        os.chdir(before)
        os.close(directory)
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("listings")
    (home / "program.py").write_text(PROGRAM)
    return home


@pytest.fixture(scope="module", params=["close-to-open", "strict", "exclusive"])
def shared(request: pytest.FixtureRequest, home: Path) -> Iterator[Sharing]:
    sharing = Sharing(home, request.param)
    with sharing.enclave:
        yield sharing


@pytest.fixture(params=["the client's", "private"])
def folder(request: pytest.FixtureRequest, shared: Sharing) -> Iterator[str]:
    """One that is empty; of the private ones there is but one in an enclave, which the program makes."""
    if request.param == "private":
        yield "/tmp/listings"
        return
    path = shared.path / "folder"
    path.mkdir()
    yield str(path)
    path.rmdir()


def test_what_a_program_makes_after_it_opened_a_directory_is_listed(shared: Sharing, folder: str) -> None:
    found = shared.enclave.call("made_after_open", folder)
    assert found == [["file", "made"], ["made", "renamed"], []]


def test_what_others_make_after_a_program_opened_a_directory_is_listed(shared: Sharing) -> None:
    path = shared.path / "others"
    path.mkdir()
    shared.change = (path / "made").touch
    try:
        assert shared.enclave.call("made_by_others_after_open", str(path)) == ["made"]
    finally:
        shared.change = lambda: None


def test_a_removed_directory_lists_nothing(shared: Sharing, folder: str) -> None:
    assert shared.enclave.call("of_removed", f"{folder}-gone") == [[], [], [0, 0]]
