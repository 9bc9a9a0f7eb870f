"""Nothing is reached through a symbolic link, with openat2 and without."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.hostcall.client import openat, paths
from adyton.hostcall.client.openat import ConfinedTree, has_openat2


@pytest.fixture(params=["openat2", "walk"])
def tree(request):
    if request.param == "openat2" and not has_openat2():
        pytest.skip("this kernel has no openat2")
    tree = ConfinedTree(walk=request.param == "walk")
    yield tree
    tree.close()


@pytest.fixture
def area(tmp_path):
    """A folder with a file in a subfolder, and a secret beside it; spelt without symbolic links."""
    area = Path(os.path.realpath(tmp_path))
    (area / "in" / "sub").mkdir(parents=True)
    (area / "in" / "sub" / "file").write_text("inside")
    (area / "out").mkdir()
    (area / "out" / "file").write_text("secret")
    return area


def read(tree, path):
    descriptor = tree.open_file(str(path), os.O_RDONLY)
    try:
        return os.read(descriptor, 100).decode()
    finally:
        os.close(descriptor)


def test_a_regular_file_is_opened_close_on_exec(tree, area):
    assert read(tree, area / "in/sub/file") == "inside"
    descriptor = tree.open_file(str(area / "in/sub/file"), os.O_RDONLY)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("place", ["in", "in/sub", "in/sub/file"])
def test_a_symbolic_link_anywhere_on_the_way_is_refused(tree, area, place):
    real = area / f"{place}.real"
    (area / place).rename(real)
    (area / place).symlink_to(real)
    with pytest.raises(PermissionError):
        read(tree, area / "in/sub/file")
    if place != "in/sub/file":
        with pytest.raises(PermissionError), tree.parent(str(area / "in/sub/file")):
            pass
        with pytest.raises(PermissionError):
            tree.list_directory(str(area / "in/sub"))


def test_a_dangling_link_is_not_created_through(tree, area):
    (area / "in/new").symlink_to(area / "out/new")
    with pytest.raises(PermissionError):
        tree.open_file(str(area / "in/new"), os.O_RDWR | os.O_CREAT, 0o600)
    with pytest.raises(FileExistsError):
        tree.open_file(str(area / "in/new"), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    assert not (area / "out/new").exists()


def test_a_link_to_a_directory_is_not_listed(tree, area):
    (area / "in/link").symlink_to(area / "out")
    with pytest.raises(PermissionError):
        tree.list_directory(str(area / "in/link"))


def test_the_last_name_of_a_parent_may_be_a_link_which_is_not_followed(tree, area):
    (area / "in/link").symlink_to("target")
    with tree.parent(str(area / "in/link")) as (directory, name):
        assert os.readlink(name, dir_fd=directory) == "target"


def test_a_fifo_is_refused_without_waiting(tree, area):
    os.mkfifo(area / "in/fifo")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        with pytest.raises(PermissionError):
            tree.open_file(str(area / "in/fifo"), flags)


def test_devices_directories_and_sockets_are_refused(tree, area):
    with pytest.raises(PermissionError):
        tree.open_file("/dev/null", os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        tree.open_file(str(area / "in"), os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        tree.open_file("/", os.O_RDONLY)


@pytest.mark.parametrize(
    "path", ["/proc/self/mem", "/proc/self/environ", "/proc/self/fd/0", "/proc/self/root/etc/passwd"]
)
def test_procfs_leads_nowhere(tree, path):
    with pytest.raises(PermissionError):
        tree.open_file(path, os.O_RDONLY)
    resolved = path.replace("self", str(os.getpid()))
    with pytest.raises(PermissionError):
        tree.open_file(resolved, os.O_RDONLY)


def test_missing_names_are_missing(tree, area):
    with pytest.raises(FileNotFoundError):
        tree.open_file(str(area / "in/none"), os.O_RDONLY)
    with pytest.raises(FileNotFoundError):
        tree.open_file(str(area / "none/file"), os.O_RDONLY | os.O_CREAT)
    with pytest.raises(NotADirectoryError):
        tree.open_file(str(area / "in/sub/file/below"), os.O_RDONLY)


def test_the_root_is_its_own_parent(tree):
    with tree.parent("/") as (directory, name):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    assert (status.st_dev, status.st_ino) == (os.stat("/").st_dev, os.stat("/").st_ino)
    os.close(tree.list_directory("/"))


def test_a_closed_tree_opens_nothing(area):
    for walk in (True, False):
        tree = ConfinedTree(walk=walk)
        tree.close()
        tree.close()
        with pytest.raises(OSError):
            tree.list_directory(str(area))


def test_a_directory_swapped_for_a_link_all_the_time_never_gives_the_secret(tree, area):
    """The race of checking a path and then using it: one thread swaps, another opens."""
    target, spare, link = area / "in/sub", area / "in/spare", area / "in/link"
    link.symlink_to(area / "out")
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            target.rename(spare)
            link.rename(target)
            target.rename(link)
            spare.rename(target)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        seen = set()
        for _ in range(400):
            with suppress(FileNotFoundError, PermissionError):
                seen.add(read(tree, target / "file"))
    finally:
        stop.set()
        swapper.join()
    assert seen <= {"inside"}


def open_files():
    """What our descriptors lead to in file systems. Sockets and the like are no tree's: gRPC's threads open and close them."""
    found = Counter()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
    return Counter({path: count for path, count in found.items() if path.startswith("/")})


def test_descriptors_are_given_back(tree, area):
    (area / "in/link").symlink_to("sub")
    before = open_files()
    for path in ("in/sub/file", "in/link/file", "in/none", "in", "in/sub/file/x", "none/none/none"):
        with suppress(OSError):
            read(tree, area / path)
        with suppress(OSError):
            os.close(tree.list_directory(str(area / path)))
    until = time.monotonic() + 10  # for another thread's file, read at this moment
    while not open_files() <= before and time.monotonic() < until:
        threading.Event().wait(0.02)
    assert open_files() <= before


def test_rename_without_replacing(tree, area):
    with tree.parent(str(area / "in/sub/file")) as source, tree.parent(str(area / "out/file")) as target:
        with pytest.raises(FileExistsError):
            openat.rename(source, target, replace=False)
        openat.rename(source, target, replace=True)
    assert (area / "out/file").read_text() == "inside"


def test_times_of_a_link_are_the_links_own(tree, area):
    link = area / "in/link"
    link.symlink_to(area / "out/file")
    before = os.stat(area / "out/file").st_mtime_ns
    with tree.parent(str(link)) as (directory, name):
        openat.set_times(directory, name, None, 1_500_000_000_123_456_789)
        accessed = os.lstat(link).st_atime_ns
        openat.set_times(directory, name, None, -1)
    assert os.lstat(link).st_mtime_ns == -1
    assert os.lstat(link).st_atime_ns == accessed
    assert os.stat(area / "out/file").st_mtime_ns == before


def test_modes_never_go_through_a_link_nor_gain_rights(tree, area):
    link = area / "in/link"
    link.symlink_to(area / "out/file")
    with tree.parent(str(link)) as (directory, name):
        with pytest.raises(OSError):
            openat.set_mode(directory, name, 0o777)
        with pytest.raises(PermissionError):
            openat.set_mode(directory, "sub/file", 0o4755)
        openat.set_mode(directory, "sub", 0o2750)
    assert stat.S_IMODE((area / "in/sub").stat().st_mode) == 0o2750


NAMES = st.sampled_from(["a", "b", "..", ".", "", "a\0", "x" * 255])


@given(st.lists(NAMES, max_size=8).map(lambda names: "/" + "/".join(names)))
def test_what_counts_as_normalised_is_what_normpath_leaves_alone(path):
    expected = os.path.normpath(path) == path and "\0" not in path and not path.startswith("//")
    assert paths.is_normalised(path) == expected


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=6))
def test_upwards_ends_at_the_root_and_split_undoes_join(names):
    path = "/" + "/".join(names)
    above = list(paths.upwards(path))
    assert above[0] == path
    assert above[-1] == "/"
    assert len(above) == len(names) + 1
    if names:
        assert paths.join(*paths.split(path)) == path


@given(st.text())
def test_what_is_shown_holds_nothing_that_a_terminal_obeys(text):
    shown = paths.visible(text)
    assert shown.isprintable()
    assert shown == text or not (text.isprintable() and "\\" not in text)


class TestSpellings:
    def test_a_path_without_links_has_one(self, area):
        assert paths.spellings(f"{area}/in/./sub//file") == [f"{area}/in/sub/file"]
        assert paths.spellings("/") == ["/"]

    def test_each_link_on_the_way_adds_one(self, area):
        (area / "second").symlink_to("in")
        (area / "first").symlink_to(area / "second")
        assert paths.spellings(f"{area}/first/sub/new") == [
            f"{area}/{name}/sub/new" for name in ("first", "second", "in")
        ]

    def test_dotdot_goes_to_the_parent_of_what_a_link_leads_to(self, area):
        (area / "link").symlink_to("in/sub")
        assert paths.spellings(f"{area}/link/../x")[-1] == f"{area}/in/x"
        assert f"{area}/x" not in paths.spellings(f"{area}/link/../x")

    def test_what_is_missing_stays_as_it_is_spelt(self, area):
        assert paths.spellings(f"{area}/none/../new/file") == [f"{area}/new/file"]

    def test_a_circle_is_an_error(self, area):
        (area / "one").symlink_to("two")
        (area / "two").symlink_to("one")
        with pytest.raises(OSError):
            paths.spellings(f"{area}/one/x")

    def test_the_last_one_is_what_realpath_says(self, area):
        (area / "link").symlink_to("../" + area.name + "/in")
        for path in ("link", "link/sub/file", "link/../out", "in/../link/none"):
            assert paths.spellings(f"{area}/{path}")[-1] == os.path.realpath(f"{area}/{path}")
