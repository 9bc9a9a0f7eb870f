"""For how long the guest's kernel may believe a name without asking, and what it holds up when another program changes one."""

from __future__ import annotations

import errno
import os

import pytest
from caching_client import CachingClient, CachingKernel
from fake_kernel import raises

from adyton.hostcall import abi
from adyton.runtime.process.supervisor import fuse_abi
from adyton.runtime.process.supervisor.fuse_abi import Opcode
from adyton.runtime.process.supervisor.leases import CALM, LEASE, OVER

FILE, FOLDER = "/work/out/f", "/work/out/folder"
TICK = 0.01  # seconds, of a kernel of 100 Hz: the slowest


@pytest.fixture
def client() -> CachingClient:
    client = CachingClient({"/work/out": "write"})
    client.file(FILE, b"old")
    client.file(f"{FOLDER}/below/deep", b"old")
    return client


@pytest.fixture(params=["close-to-open", "exclusive"])
def kernel(client: CachingClient, request: pytest.FixtureRequest) -> CachingKernel:
    kernel = CachingKernel.of(client, request.param)
    kernel.now = 100.0
    for path in (FILE, f"{FOLDER}/below/deep"):
        kernel.lookup(path)
    return kernel


def lifetime(kernel: CachingKernel, path: str) -> float:
    return kernel.lookup(path).name_lifetime


def changed(kernel: CachingKernel, path: str) -> float:
    """Another program changed what is there: for how long that holds up what the client says next."""
    directory, name = os.path.split(path)
    kernel.apply(kernel.server.changed(abi.Changed([(directory, name)])))
    return kernel.server.believed


def test_a_lease_is_over_though_a_thread_began_it_late_by_as_much_as_it_takes() -> None:
    assert OVER >= 2 * (LEASE + TICK)


@pytest.mark.parametrize("path", [FILE, FOLDER, f"{FOLDER}/below", f"{FOLDER}/below/deep", "/work/out"])
def test_a_watched_name_is_leased(kernel: CachingKernel, path: str) -> None:
    assert lifetime(kernel, path) == LEASE


def test_a_name_of_a_strict_path_or_of_what_nobody_watches_is_not(client: CachingClient) -> None:
    strict = CachingKernel.of(client, "strict")
    client.promises = False
    unwatched = CachingKernel.of(client, "close-to-open")
    for kernel in (strict, unwatched):
        kernel.now = 100.0
        for path in (FILE, FOLDER, f"{FOLDER}/below/deep"):
            assert (lifetime(kernel, path), lifetime(kernel, path)) == (0, 0)
        assert changed(kernel, FILE) == 0


def test_a_name_that_is_not_there_is_not_kept(kernel: CachingKernel) -> None:
    with raises(errno.ENOENT):
        kernel.lookup("/work/out/none")
    assert changed(kernel, "/work/out/none") == 0


def test_a_file_with_several_names_is_asked_about_each_time(kernel: CachingKernel, client: CachingClient) -> None:
    client.things["/work/out/other"] = client.things[FILE]
    changed(kernel, "/work/out/other")
    kernel.now += 2 * CALM
    for path in (FILE, "/work/out/other"):
        kernel.lookup(path)
    assert (lifetime(kernel, FILE), lifetime(kernel, "/work/out/other")) == (0, 0)


@pytest.mark.parametrize(
    ("looked_at", "told"),
    [
        (FILE, FILE),
        (FOLDER, FOLDER),
        (f"{FOLDER}/below/deep", FOLDER),
        (f"{FOLDER}/below/deep", f"{FOLDER}/"),
        (f"{FOLDER}/below", "/work/out/"),
    ],
)
def test_what_the_client_says_after_a_change_waits_for_the_lease(
    kernel: CachingKernel, looked_at: str, told: str
) -> None:
    kernel.now += 1
    kernel.lookup(looked_at)
    kernel.now += OVER / 3
    assert changed(kernel, told) == pytest.approx(OVER * 2 / 3)


def test_a_lease_begins_when_the_kernel_is_told(kernel: CachingKernel) -> None:
    above = kernel.lookup("/work/out").node
    kernel.now += 1
    effects = kernel.server.receive(fuse_abi.encode(Opcode.LOOKUP, 1000, above, fuse_abi.Name(b"f")))
    kernel.now += 2 * OVER  # the supervisor waits for a processor
    kernel.apply(effects)
    kernel.now += OVER / 2
    assert changed(kernel, FILE) == pytest.approx(OVER / 2)


@pytest.mark.parametrize("path", [FILE, FOLDER, "/work/out/none", "/work/out/new"])
def test_a_change_of_what_nobody_looked_at_lately_waits_for_nothing(kernel: CachingKernel, path: str) -> None:
    kernel.now += OVER
    kernel.lookup(f"{FOLDER}/below/deep")
    kernel.now += OVER
    assert changed(kernel, path) == 0
    kernel.lookup(FILE)
    assert changed(kernel, "/work/out/none") == 0


def test_a_change_of_another_name_waits_for_nothing(kernel: CachingKernel) -> None:
    kernel.now += 1
    kernel.lookup(f"{FOLDER}/below/deep")
    assert changed(kernel, FILE) == 0


def test_a_name_that_the_guest_gave_takes_its_lease_along(kernel: CachingKernel) -> None:
    kernel.now += 1
    kernel.rename(FILE, "/work/out/moved")
    assert changed(kernel, FILE) == 0
    assert changed(kernel, "/work/out/moved") == pytest.approx(OVER)


def test_who_was_held_up_once_is_not_again_for_a_while(kernel: CachingKernel) -> None:
    kernel.now += 1
    kernel.lookup(FILE)
    assert changed(kernel, FILE) == pytest.approx(OVER)
    for _ in range(3):
        kernel.now += CALM / 4
        assert (lifetime(kernel, FILE), lifetime(kernel, FOLDER)) == (0, 0)
        assert changed(kernel, FILE) == 0
    kernel.now += CALM / 4
    assert lifetime(kernel, FILE) == LEASE


def test_the_client_is_not_asked_for_a_directory_that_is_still_there(
    kernel: CachingKernel, client: CachingClient
) -> None:
    """However old its attributes are; but what is there is, once another program changed it."""
    kernel.now += 1000
    kernel.lookup(FOLDER)
    waits = kernel.waits
    for _ in range(3):
        kernel.now += 1000
        kernel.request(Opcode.LOOKUP, kernel.server._view.tree.at("/work/out").id, fuse_abi.Name(b"folder"))
    assert kernel.waits == waits
    client.things[FOLDER] = type(client.things[FOLDER])("directory", next(client.identities), 0o755)
    changed(kernel, FOLDER)
    assert kernel.lookup(FOLDER).attr.number == client.things[FOLDER].identity
    assert kernel.waits > waits
