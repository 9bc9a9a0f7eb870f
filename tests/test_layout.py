"""Whose each name in the enclave's file tree is, whatever the client asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.communicator.messages import Grant
from adyton.errors import AdytonError, RemoteProtocolError, UsageError
from adyton.hostcall.own_paths import OWN_PATHS, own_path
from adyton.runtime.process.supervisor.layout import Layout, Place, is_normal


def layout(*paths: str, cwd: str = "/home/ann/work") -> Layout:
    return Layout([Grant(path, "read") for path in paths], cwd)


@pytest.mark.parametrize(
    ("grants", "cwd", "path", "place"),
    [
        ([], "/w", "/", Place.LEADING),
        ([], "/w", "/opt", Place.LEADING),
        ([], "/w", "/w", Place.LEADING),
        ([], "/w", "/w/x", Place.OUTSIDE),
        ([], "/w", "/x", Place.OUTSIDE),
        ([], "/w", "/tmp", Place.OWN),
        ([], "/w", "/tmp/x", Place.OWN),
        ([], "/w", "/usr/lib/x", Place.OWN),
        (["/w/data"], "/w", "/w/data", Place.CLIENT),
        (["/w/data"], "/w", "/w/data/a/b", Place.CLIENT),
        (["/w/data"], "/w", "/w/database", Place.OUTSIDE),
        (["/a/b/c"], "/w", "/a", Place.LEADING),
        (["/a/b/c"], "/w", "/a/b", Place.LEADING),
        (["/a/b/c"], "/w", "/a/x", Place.OUTSIDE),
        (["/"], "/w", "/", Place.CLIENT),
        (["/"], "/w", "/usr/lib/python3/x.py", Place.OWN),
        (["/"], "/w", "/enclave", Place.OWN),
        (["/"], "/w", "/opt", Place.CLIENT),
        (["/"], "/w", "/opt/adyton/lib", Place.OWN),
        (["/"], "/w", "/tmp/x", Place.CLIENT),
        (["/opt"], "/w", "/opt/x", Place.CLIENT),
        (["/opt"], "/w", "/opt/adyton", Place.OWN),
        # /tmp as a part of the tree
        (["/tmp/a/b"], "/w", "/tmp", Place.PRIVATE),
        (["/tmp/a/b"], "/w", "/tmp/x", Place.PRIVATE),
        (["/tmp/a/b"], "/w", "/tmp/a", Place.PRIVATE),
        (["/tmp/a/b"], "/w", "/tmp/a/x", Place.PRIVATE),
        (["/tmp/a/b"], "/w", "/tmp/a/b/c", Place.CLIENT),
        (["/tmp"], "/w", "/tmp", Place.CLIENT),
        (["/tmp"], "/w", "/tmp/x", Place.CLIENT),
        ([], "/tmp/job", "/tmp", Place.PRIVATE),
        ([], "/tmp/job", "/tmp/x", Place.PRIVATE),
        ([], "/tmp/job", "/tmp/job", Place.LEADING),
        ([], "/tmp/job", "/tmp/job/x", Place.OUTSIDE),
        (["/tmp/job/a/b"], "/tmp/job", "/tmp/job/a", Place.LEADING),
        (["/tmp/job/a/b"], "/tmp/job", "/tmp/job/a/x", Place.OUTSIDE),
        (["/tmp/job/a/b"], "/tmp/job", "/tmp/job/a/b/x", Place.CLIENT),
        ([], "/tmp", "/tmp", Place.LEADING),
        ([], "/tmp", "/tmp/x", Place.OUTSIDE),
        ([], "/", "/tmp/x", Place.OWN),
        ([], "/", "/x", Place.OUTSIDE),
        (["/tmpfiles"], "/w", "/tmp", Place.OWN),
    ],
)
def test_each_name_has_one_owner(grants: list[str], cwd: str, path: str, place: Place) -> None:
    assert layout(*grants, cwd=cwd).classify(path) is place


@pytest.mark.parametrize(
    ("grants", "cwd", "part_of_the_tree", "directories"),
    [
        ([], "/w", False, ()),
        (["/a"], "/", False, ()),
        (["/tmp/a/b/c"], "/w", True, ("/tmp/a", "/tmp/a/b")),
        (["/tmp/x"], "/tmp/job/1", True, ("/tmp/job",)),
        (["/"], "/w", True, ()),
        (["/tmp"], "/tmp/job", True, ()),
    ],
)
def test_tmp_is_a_mount_of_its_own_unless_something_of_the_client_touches_it(
    grants: list[str], cwd: str, part_of_the_tree: bool, directories: tuple[str, ...]
) -> None:
    got = layout(*grants, cwd=cwd)
    assert got.needs_private_tmp is part_of_the_tree
    assert got.private_directories == directories


@pytest.mark.parametrize("own", [*OWN_PATHS, "/usr/share/x", "/lib64", "/dev/shm/x"])
def test_a_grant_of_the_enclave_own_names_is_refused(own: str) -> None:
    with pytest.raises(UsageError, match="enclave's own"):
        layout("/data", own)


def test_a_working_directory_of_the_enclave_own_names_is_not_asked_of_the_client() -> None:
    got = layout(cwd="/usr/local")
    assert got.working_directory == "/enclave"
    assert got.classify("/usr/local") is Place.OWN
    assert layout(cwd="/home").working_directory == "/home"


@pytest.mark.parametrize(
    "path", ["", "a", "a/b", "/a/", "//", "//a", "/a//b", "/./a", "/a/.", "/a/../b", "/..", "/a\0b", "/" + "a" * 4096]
)
def test_malformed_paths_are_refused(path: str) -> None:
    assert not is_normal(path)
    with pytest.raises(RemoteProtocolError):
        layout(path)
    with pytest.raises(RemoteProtocolError):
        layout(cwd=path)


def test_what_a_client_can_make_the_enclave_hold_is_bounded() -> None:
    with pytest.raises(RemoteProtocolError, match="too many"):
        layout(*(f"/a{number}" for number in range(1025)))
    with pytest.raises(RemoteProtocolError, match="too many"):
        layout(*(f"/{number}" + "/a" * 2000 for number in range(300)))


def test_the_names_that_a_directory_shows_of_the_client() -> None:
    got = layout("/tmp/a/b", "/tmp/c", "/tmpx", cwd="/tmp/job/1")
    assert list(got.names_in("/tmp")) == ["a", "c", "job"]
    assert list(got.names_in("/tmp/a")) == ["b"]
    assert list(got.names_in("/")) == ["tmp", "tmpx"]


names = st.sampled_from(["a", "b", "tmp", "usr", "lib64", "opt", "adyton", "enclave", "data"])
paths = st.lists(names, max_size=4).map(lambda parts: "/" + "/".join(parts))
hostile = paths | st.text(max_size=12) | st.text(alphabet="/.a\0", max_size=8)


@given(st.lists(hostile, max_size=4), hostile, paths)
def test_the_enclave_own_names_win_over_every_layout(grants: list[str], cwd: str, path: str) -> None:
    try:
        got = layout(*grants, cwd=cwd)
    except AdytonError:
        return
    place = got.classify(path)
    covered = any(path == grant or path.startswith(grant.rstrip("/") + "/") for grant in grants)
    if own_path(path) is not None:
        assert place is Place.OWN
    elif covered:
        assert place is Place.CLIENT
    else:
        assert place is not Place.CLIENT
    if place is Place.PRIVATE:
        assert path.startswith("/tmp")
