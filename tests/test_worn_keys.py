"""No connection goes on with its keys for ever: its client replaces it, and nobody who calls notices."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import dialling
from ledgers import LEDGER, server

import adyton
from adyton.channel import machine, tls
from adyton.channel.tls import KEY_BYTES, MOST_BYTES, Tls
from adyton.errors import RemoteProtocolError
from adyton.remote import line

PROGRAM = (
    LEDGER
    + """
from collections.abc import Iterator
import adyton.trusted as trusted

@trusted.host_function
def told(number: int) -> int: ...

def take(number: int, data: bytes) -> int:
    note(number)
    return len(data)

def tell(number: int, data: bytes) -> int:
    return len(data) + told(number) - number

def give(count: int, size: int) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(size)
"""
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("worn") / "ledger.py"
    path.write_text(PROGRAM)
    return str(path)


def test_the_limits_keep_far_from_what_tls_allows():
    blocks = 2**24.5 * 2**10  # records of AES-GCM that one key may seal, RFC 8446 section 5.5, of 2^14 bytes each
    assert KEY_BYTES * 2 <= MOST_BYTES < blocks * 16 / 2
    # Who goes on for an hour at 5 GiB/s in one direction does not come from the first to the second without replacing it.
    assert line.KEY_SECONDS <= 3600


def test_what_comes_by_keys_that_were_used_for_too_long_is_not_read(monkeypatch):
    client, other = Tls.client(), Tls.server()
    for _ in range(3):
        other.receive(client.data_to_send())
        client.receive(other.data_to_send())
    monkeypatch.setattr(tls, "MOST_BYTES", 50_000)
    with pytest.raises(RemoteProtocolError, match="long enough"):  # noqa: PT012
        for _ in range(100):
            client.send(bytes(1000))
            assert other.receive(client.data_to_send()) == bytes(1000)
    assert 49_000 < other.received < 52_000


def work(client: adyton.EnclaveClient, over, numbers) -> list[tuple[int, float]]:
    """Calls of all kinds; each with how long it took."""
    done = []
    while not over():
        number = next(numbers)
        size = (0, 100, 20_000, 300_000)[number % 4]
        begun = time.monotonic()
        assert client.call("tell" if number % 3 == 0 else "take", number, bytes(size)) == size
        done.append((number, time.monotonic() - begun))
    return done


@pytest.mark.sandbox
@pytest.mark.parametrize("limit", ["bytes", "seconds"])
def test_a_connection_is_replaced_and_every_call_has_run_once(program, monkeypatch, limit):
    if limit == "bytes":
        monkeypatch.setattr(machine, "KEY_BYTES", 1_000_000)
    else:
        monkeypatch.setattr(line, "KEY_SECONDS", 0.1)
    told: list[int] = []

    def on_client(number: int) -> int:
        told.append(number)
        return number

    on_client.__name__ = "told"
    with server() as there:
        client = there.load(program, functions=[on_client], allow_call=["told"])
        first, numbers = there.network.accepted, iter(range(1 << 30))
        with ThreadPoolExecutor(4) as threads:

            def over() -> bool:
                return there.network.accepted >= first + 8

            done = [
                each
                for future in [threads.submit(work, client, over, numbers) for _ in range(4)]
                for each in future.result()
            ]
        assert sorted(told) == sorted(number for number, _ in done if number % 3 == 0)
        assert client.call("ledger") == {number: 1 for number, _ in done if number % 3}
        assert max(seconds for _, seconds in done) < line.ATTEMPT_SECONDS  # none waited for anything to be given up
        client.close()
        assert there.process.wait(30) == 0


@pytest.mark.sandbox
def test_a_stream_goes_on_over_connections_that_are_replaced(program, monkeypatch):
    monkeypatch.setattr(machine, "KEY_BYTES", 1_000_000)
    with server() as there, there.load(program) as client:
        first = there.network.accepted
        items = list(client.call("give", 200, 50_000))
        assert [len(each) for each in items] == [50_000] * 200
        assert first + 4 <= there.network.accepted <= first + 12


@pytest.mark.sandbox
def test_an_idle_connection_and_one_whose_enclave_hardly_waits_stay(program, monkeypatch):
    monkeypatch.setattr(line, "KEY_SECONDS", 0.05)
    with server("--grace", "0") as there, there.load(program) as client:
        first = there.network.accepted
        for number in range(50):
            assert client.call("note", number) == number
            threading.Event().wait(0.005)
        assert there.network.accepted == first
    with server() as there, there.load(program) as client:
        assert client.call("note", 1) == 1
        for _ in range(
            100
        ):  # for what came last, and the word that it came, and again where those took long themselves
            settled = there.network.accepted
            threading.Event().wait(0.3)
            if there.network.accepted == settled:
                break
        assert there.network.accepted == settled


@pytest.mark.sandbox
def test_who_waits_for_its_proxy_server_to_dial_has_connections_replaced_as_well(program, monkeypatch):
    monkeypatch.setattr(machine, "KEY_BYTES", 500_000)
    made: list[bool] = []
    plain = line.Line._carry
    monkeypatch.setattr(line.Line, "_carry", lambda self, connection: made.append(True) or plain(self, connection))
    with dialling("ipv4", ""), adyton.load(program) as client:
        for number in range(20):
            assert client.call("take", number, bytes(100_000)) == 100_000
        assert client.call("ledger") == dict.fromkeys(range(20), 1)
    assert len(made) >= 3
