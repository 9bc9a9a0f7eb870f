"""sqlite3 in an enclave, unchanged, on databases of the client: with a rollback journal and with a write-ahead log, in each coherence."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from subprocess import PIPE

import pytest

import adyton
from adyton.config import Policy

pytestmark = [pytest.mark.sandbox, pytest.mark.usefixtures("on_the_server")]

BANK = '''
import multiprocessing
import os
import random
import sqlite3
import threading
from contextlib import closing

ACCOUNTS = 100
PATIENCE = 60


def connect(path):
    return sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)


def create(path: str, journal: str) -> str:
    bank = connect(path)
    (mode,) = bank.execute(f"pragma journal_mode = {journal}").fetchone()
    bank.execute("begin")
    bank.execute("create table accounts (number integer primary key, balance integer)")
    bank.executemany("insert into accounts values (?, 1000)", [(number,) for number in range(ACCOUNTS)])
    bank.execute("commit")
    bank.close()
    return mode


def transfer(path, seed, times):
    draw, bank = random.Random(seed), connect(path)
    for _ in range(times):
        bank.execute("begin immediate")
        amount = draw.randrange(100)
        for sign in (-1, 1):
            number = draw.randrange(ACCOUNTS)
            bank.execute("update accounts set balance = balance + ? where number = ?", (sign * amount, number))
        bank.execute("commit")
    bank.close()


def transfers(path: str, processes: int, times: int) -> list[int]:
    """Transfers of so many processes; the sums of all accounts that a thread has seen meanwhile."""
    sums = []

    def look():
        bank = connect(path)
        for _ in range(times):
            sums.extend(bank.execute("select sum(balance) from accounts").fetchone())
        bank.close()

    context = multiprocessing.get_context("fork")
    working = [context.Process(target=transfer, args=(path, seed, times)) for seed in range(processes)]
    working.append(threading.Thread(target=look))
    for each in working:
        each.start()
    for each in working:
        each.join()
    return [*sums, *(each.exitcode for each in working[:-1])]


def cut_short(path: str) -> None:
    """Dies within a transaction, of which much is on disk already."""
    bank = connect(path)
    bank.execute("pragma cache_size = 5")
    bank.execute("begin")
    bank.execute("create table rubbish (text)")
    bank.executemany("insert into rubbish values (?)", [("x" * 1000,) for _ in range(60)])
    bank.execute("update accounts set balance = 0")
    os.abort()


kept = []


def keep(path: str) -> int:
    """Reads the database, and leaves it open."""
    kept.append(connect(path))
    return kept[-1].execute("select count(*) from accounts").fetchone()[0]


def rewrite(path: str) -> None:
    with closing(connect(path)) as bank:
        bank.execute("update accounts set balance = balance")


def give_up() -> None:
    kept.pop().close()
'''


def load(folder, coherence):
    (folder / "bank.py").write_text(BANK)
    (folder / "data").mkdir()
    policy = Policy.parse(f'[[mount]]\npath = "data"\ncoherence = "{coherence}"\n', name="test", base=str(folder))
    return adyton.load("bank.py", policy=policy, allow_write=["data"])


def state(path):
    """Sum of all accounts, number of tables, and what SQLite says of the file, on the client."""
    database = sqlite3.connect(path)
    try:
        query = "select sum(balance), (select count(*) from sqlite_schema) from accounts"
        return (*database.execute(query).fetchone(), *database.execute("pragma integrity_check").fetchone())
    finally:
        database.close()


OTHER = """
import sqlite3, sys
database = sqlite3.connect("data/bank.db", timeout=float(sys.argv[1]), isolation_level=None)
database.execute("begin")
print(database.execute("select count(*) from accounts").fetchone()[0], flush=True)
sys.stdin.read()
"""


def other(timeout):
    """Another program on the client, that has a transaction as soon as it prints, until its input ends. `timeout`: seconds it waits for it."""
    command = [sys.executable, "-c", OTHER, str(timeout)]
    return subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)


@pytest.mark.parametrize("coherence", ["strict", "close-to-open", "exclusive"])
@pytest.mark.parametrize(("journal", "written"), [("delete", "data/bank.db"), ("wal", "data/bank.db-wal")])
def test_transactions_are_whole_among_processes_and_when_the_enclave_dies(workplace, coherence, journal, written):
    path = "data/bank.db"

    def use(bank):
        assert bank.call("create", path, journal) == journal
        *sums, first, second = bank.call("transfers", path, 2, 6)
        assert (first, second) == (0, 0)
        assert sums == [100_000] * 6
        assert state(path) == (100_000, 1, "ok")
        bank.call("cut_short", path)

    with pytest.raises(adyton.errors.AdytonError, match="SIGABRT"), load(workplace, coherence) as bank:
        use(bank)
    assert os.path.getsize(written) > 40_000
    assert state(path) == (100_000, 1, "ok")


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_others_are_kept_off_a_database_that_is_exclusively_the_enclaves(workplace, journal):
    """The index of a write-ahead log is memory that its users share, which client and enclave cannot: `exclusive` lets nobody try."""
    path = "data/bank.db"
    with load(workplace, "exclusive") as bank:
        bank.call("create", path, journal)
        assert bank.call("keep", path) == 100
        with other(0) as refused:
            said, why = refused.communicate(timeout=60)
        assert (said, why.splitlines()[-1]) == ("", "sqlite3.OperationalError: database is locked")
        bank.call("give_up")
        with other(60) as holding:
            assert holding.stdout.readline() == "100\n"
            with pytest.raises(adyton.errors.EnclaveError, match="attempt to write a readonly database"):
                bank.call("rewrite", path)
            holding.communicate(timeout=60)
        bank.call("rewrite", path)
