"""Where notes of sealed files are kept: in a file of a server's for all containers of an owner, and in one of the client's for each server and owner."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from adyton.hostcall import abi
from adyton.hostcall.client.executor import Executor
from adyton.hostcall.client.policy import HostCallPolicy
from adyton.hostcall.client.sealed_memory import SealedMemory, memory_folder
from adyton.runtime.process.supervisor import sealed_memory
from adyton.runtime.process.supervisor.sealed_memory import HALF, RECORD, OwnMemory
from adyton.runtime.process.supervisor.sealed_storage import at_once
from adyton.sealed_files.memory import Commit, Notes
from adyton.sealed_files.storage import Recall, Remember, StorageError


def note(store: int, counter: int, epoch: int = 0) -> bytes:
    return Notes(bytes([store]) * 32).of(Commit(bytes([epoch]) * 16, counter))


def serve(memory: OwnMemory, request: Recall | Remember):
    steps = memory.serve(request)
    with pytest.raises(StopIteration) as end:
        steps.send(next(steps).result)
    return end.value.value


# -- a server's ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "remembered"


def opened(path: Path) -> OwnMemory:
    return OwnMemory(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), at_once)


def recalled(path: Path, store: int) -> bytes:
    return serve(opened(path), Recall(note(store, 0)[:16]))


def test_notes_of_many_stores_are_in_one_file_each_replaced_by_the_next(path: Path) -> None:
    memory = opened(path)
    known = dict.fromkeys(range(5), b"")
    for counter in range(3):
        for store in known:
            new = note(store, counter)
            serve(memory, Remember(known[store], new))
            known[store] = new
    assert [recalled(path, store) for store in known] == list(known.values())
    assert recalled(path, 9) == b""
    assert path.stat().st_size == 5 * RECORD


def test_an_empty_container_is_nobodys(path: Path) -> None:
    serve(opened(path), Remember(b"", note(1, 1)))
    assert serve(opened(path), Recall(b"")) == b""


def test_who_does_not_know_the_last_note_replaces_none(path: Path) -> None:
    first, second, other = note(1, 1), note(1, 2), note(1, 2, epoch=1)
    serve(opened(path), Remember(b"", first))
    serve(opened(path), Remember(first, second))
    serve(opened(path), Remember(first, second))  # once more: it is there
    for known in (first, b""):
        with pytest.raises(StorageError, match="copy of these sealed files"):
            serve(opened(path), Remember(known, other))
    assert recalled(path, 1) == second


@pytest.mark.parametrize("cut", [0, 1, 40, HALF - 1])
def test_a_note_that_was_written_in_part_leaves_the_one_before(path: Path, cut: int) -> None:
    first, second, third = (note(1, counter) for counter in (1, 2, 3))
    serve(opened(path), Remember(b"", note(2, 7)))
    for known, new in ((b"", first), (first, second)):
        serve(opened(path), Remember(known, new))
    before = path.read_bytes()
    serve(opened(path), Remember(second, third))
    after = path.read_bytes()
    start = next(at for at in range(0, len(after), HALF) if before[at : at + HALF] != after[at : at + HALF])
    path.write_bytes(before[:start] + after[start : start + cut] + before[start + cut :])
    assert recalled(path, 1) == (third if cut > 88 else second)
    assert recalled(path, 2) == note(2, 7)


records = st.builds(
    lambda kept, counter, more: (note(1, counter) + hashlib.sha256(note(1, counter)).digest()[:16] + more)[:kept].ljust(
        HALF, b"\0"
    ),
    st.sampled_from([0, 16, 80, HALF]),
    st.integers(0, 3),
    st.binary(max_size=HALF),
)


@given(st.lists(records | st.binary(max_size=HALF), max_size=8).map(b"".join))
def test_whatever_the_file_holds_what_is_recalled_is_a_note_of_that_store_or_nothing(content: bytes) -> None:
    descriptor = os.memfd_create("remembered")
    try:
        os.write(descriptor, content)
        memory = OwnMemory(descriptor, at_once)
        known = serve(memory, Recall(note(1, 0)[:16]))
        assert known in (b"", *(note(1, counter) for counter in range(4)))
        serve(memory, Remember(known, note(1, 9)))
        assert serve(memory, Recall(note(1, 0)[:16])) == note(1, 9)
    finally:
        os.close(descriptor)


def test_the_file_does_not_grow_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_memory, "MAX_RECORDS", 2)
    for store in (1, 2):
        serve(opened(path), Remember(b"", note(store, 1)))
    with pytest.raises(StorageError) as caught:
        serve(opened(path), Remember(b"", note(3, 1)))
    assert caught.value.number == errno.ENOSPC
    serve(opened(path), Remember(note(1, 1), note(1, 2)))


def test_enclaves_that_remember_at_the_same_time_do_not_disturb_each_other(path: Path) -> None:
    def remember(store: int) -> None:
        known = b""
        for counter in range(20):
            new = note(store, counter)
            serve(memories[store], Remember(known, new))
            known = new

    memories = [opened(path) for _ in range(4)]
    threads = [threading.Thread(target=remember, args=(store,)) for store in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [recalled(path, store) for store in range(4)] == [note(store, 19) for store in range(4)]


# -- the client's ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def executor(server: str = "server.example:4321") -> Executor:
    made = Executor(HostCallPolicy.create(base="/"), [], denied=print, output=print)
    made.memory = SealedMemory(memory_folder(server), lambda owner: f"sha256-{owner}")
    return made


def test_a_clients_note_is_there_again_in_another_process_for_that_server_and_owner_only(state: Path) -> None:
    with executor() as client:
        assert client.execute(abi.Recall("measurement")) == abi.Data(b"")
        assert not state.exists()
        assert client.execute(abi.Remember("measurement", b"", b"first")) == abi.Done()
        assert client.execute(abi.Remember("measurement", b"first", b"second")) == abi.Done()
    with executor() as client:
        assert client.execute(abi.Recall("measurement")) == abi.Data(b"second")
        assert client.execute(abi.Recall("signer")) == abi.Data(b"")
    with executor("other.example:4321") as client:
        assert client.execute(abi.Recall("measurement")) == abi.Data(b"")
    (file,) = (each for each in state.rglob("*") if each.is_file())
    assert file == state / "adyton" / "sealed" / "server.example%3A4321" / "sha256-measurement"
    assert file.stat().st_mode & 0o077 == 0


def test_an_enclave_that_was_overtaken_does_not_overwrite_what_is_remembered(state: Path) -> None:
    with executor() as client:
        client.execute(abi.Remember("signer", b"", b"first"))
        client.execute(abi.Remember("signer", b"first", b"second"))
        assert client.execute(abi.Remember("signer", b"first", b"third")) == abi.Failed("ESTALE")
        assert client.execute(abi.Remember("signer", b"first", b"second")) == abi.Done()
        assert client.execute(abi.Recall("signer")) == abi.Data(b"second")


def test_a_client_that_can_keep_nothing_says_so(state: Path) -> None:
    state.write_text("no folder")
    with executor() as client:
        result = client.execute(abi.Remember("signer", b"", b"first"))
        assert isinstance(result, abi.Failed)


def test_a_client_without_memory_refuses() -> None:
    with Executor(HostCallPolicy.create(base="/"), [], denied=print, output=print) as client:
        assert client.execute(abi.Recall("signer")) == abi.Failed("EIO")


def test_addresses_of_servers_are_names_of_folders(state: Path) -> None:
    folders = {memory_folder(each) for each in ("a:1", "[::1]:4321", "unix:/run/../x", "unix:/" + "é" * 100, "local")}
    assert len(folders) == 5
    assert {os.path.dirname(each) for each in folders} == {str(state / "adyton" / "sealed")}
