"""Realtime clocks that jump, on either machine: nothing of a session, a deadline or a grace is measured by them."""

from __future__ import annotations

import ast
import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme
from bad_network import BadNetwork
from command import ROOT, start
from ledgers import LEDGER

import adyton
from adyton.errors import ConnectionLostError, DeadlineError

DAY = 86_400
SOURCES = ROOT / "src" / "adyton"
# Who asks what time it is, and why that decides nothing of a session; `image` and `cli` run before and beside it.
WHO_ASKS = {
    "attestation/collateral_store.py": "vendors' documents hold until a date",
    "attestation/verify.py": "evidence is judged as of now, unless a time is given",
    "broker/audit.py": "when a record was written",
    "broker/server.py": "evidence is judged as of now",
    "cli/verify.py": "the default of --at",
    "image/cache.py": "which built image was used least",
    "remote/certificates.py": "own certificates, before the first connection",
    "remote/connection.py": "words the error of a connection that failed",
    "remote/time_teller.py": "what the client tells its enclave",
    "runtime/process/supervisor/clock.py": "an enclave that keeps its server's time",
    "runtime/process/supervisor/files.py": "an enclave's private files, where no clock is given",
    "telemetry/calls.py": "when a span began",
    "trusted/attested.py": "another enclave's evidence is judged as of now",
}
REALTIME = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime", "CLOCK_REALTIME"}


def asks(source: str) -> bool:
    """Whether the module uses the realtime clock of `time` or `datetime`."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in REALTIME
        and ast.unparse(node.value) in ("time", "datetime", "dt.datetime", "dt.date", "datetime.datetime", "date")
        for node in ast.walk(ast.parse(source))
    )


def test_nobody_asks_the_realtime_clock_who_decides_by_it():
    found = {str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py") if asks(path.read_text(encoding="utf-8"))}
    assert found == set(WHO_ASKS)
    assert not [path for path in SOURCES.rglob("*.py") if "from time import" in path.read_text(encoding="utf-8")]


SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch) -> SetClock:
    """Have the realtime clock of this process be so many seconds ahead of the true one."""
    plain, plain_ns, plain_date = time.time, time.time_ns, dt.datetime

    def ahead(seconds: float) -> None:
        class Date(plain_date):  # type: ignore[valid-type,misc]
            @classmethod
            def now(cls, tz=None):
                return plain_date.now(tz) + dt.timedelta(seconds=seconds)

        monkeypatch.setattr(time, "time", lambda: plain() + seconds)
        monkeypatch.setattr(time, "time_ns", lambda: plain_ns() + int(seconds * 1e9))
        monkeypatch.setattr(dt, "datetime", Date)

    return ahead


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> str:
    path: Path = tmp_path_factory.mktemp("jumps") / "ledger.py"
    path.write_text(LEDGER)
    return str(path)


@contextlib.contextmanager
def server(*options: str) -> Iterator[BadNetwork]:
    """The network in front of a proxy server, which ends with its enclave."""
    process = start("proxy", "--listen", "127.0.0.1:0", *options)
    assert process.stdout is not None
    network = BadNetwork(int(process.stdout.readline().rpartition(":")[2]))
    with process:
        try:
            yield network
            assert process.wait(60) == 0
        finally:
            network.close()
            process.kill()


@pytest.mark.sandbox
@pytest.mark.parametrize("jump", [DAY, -DAY, 7 * DAY], ids=["a day on", "a day back", "a week on"])
def test_a_clients_clock_that_is_set_disturbs_no_session(program, tmp_path, set_clock, jump):
    """By TLS with certificates at both ends. Each connection that is made after it, too: what was judged once is not judged again."""
    authority, now = trustme.CA(), dt.datetime.now(dt.UTC)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("127.0.0.1", "client.example"):  # valid for two days
        dates = {"not_before": now - dt.timedelta(2), "not_after": now + dt.timedelta(2)}
        authority.issue_cert(name, **dates).private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")
    client_file, server_file, ca_file = (
        str(tmp_path / f"{name}.pem") for name in ("client.example", "127.0.0.1", "ca")
    )
    tls = adyton.TLS(ca=ca_file, cert=client_file, key=client_file)
    files = (f"--ssl_cert={server_file}", f"--ssl_key={server_file}", f"--client-ca={ca_file}")
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(server(*files))
        thread = stack.enter_context(ThreadPoolExecutor(1))
        url = f"grpcs://127.0.0.1:{network.port}"
        with adyton.load(program, on=url, allow_sim=True, tls=tls) as client:
            waiting = thread.submit(client.options(timeout=3_600).call, "wait")
            set_clock(jump)
            assert client.options(timeout=60).call("note", 1) == 1
            before = network.accepted
            network.cut()
            assert client.options(timeout=60).call("note", 2) == 2
            assert network.accepted > before
            set_clock(0)
            with pytest.raises(DeadlineError, match=r"0\.3 s"):
                client.options(timeout=0.3).call("wait")
            assert not waiting.done()
            client.call("go_on")
            assert waiting.result(60) == "over"
            assert client.call("ledger") == {1: 1, 2: 1}


@pytest.mark.sandbox
def test_a_grace_is_no_longer_nor_shorter_for_a_clock_that_is_set(program, set_clock):
    with server("--grace", "1") as network:
        client = adyton.load(program, on=f"grpc://127.0.0.1:{network.port}", allow_sim=True)
        network.down()
        set_clock(-DAY)
        began = time.monotonic()
        with pytest.raises(ConnectionLostError, match="within 1 s"):
            client.call("note", 1)
        assert 0.9 < time.monotonic() - began < 60
        with pytest.raises(ConnectionLostError):
            client.close()
