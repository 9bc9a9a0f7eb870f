"""Names of the client's files that are not UTF-8, as an executor of host calls has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from executing import DENIED, Client, furnished

from adyton.hostcall import abi


@pytest.fixture(params=[None, True], ids=["as the machine allows", "walk"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    client = Client(furnished(tmp_path), walk=request.param)
    with client.executor:
        yield client


def test_names_that_are_not_utf8_are_names_like_others(client: Client) -> None:
    os.close(os.open(os.fsencode(client.home) + b"/write/\xff", os.O_CREAT | os.O_WRONLY))
    target = client.path("write/\udcff")
    assert client(abi.SymbolicLink(client.path("write/\udce9"), target)).kind == "symlink"
    assert sorted(client.list("write")) == ["\udce9", "\udcff"]
    assert client(abi.ReadLink(client.path("write/\udce9"))) == abi.Target(target)
    assert client(abi.SetExtended(target, "user.\udcff", b"v")) == abi.Done()
    assert client(abi.ListExtended(target)) == abi.Names(["user.\udcff"])
    assert client(abi.Rename(target, client.path("write/é\udc80"))) == abi.Done()
    assert client(abi.Remove(client.path("write/\udce9"), directory=False)) == abi.Done()
    assert os.listdir(os.fsencode(client.home) + b"/write") == ["é".encode() + b"\x80"]


def test_a_denied_name_that_is_not_utf8_is_said_in_ascii(client: Client) -> None:
    assert client.stat("secret/\udcff") == DENIED
    assert client.lines == [
        f"denied: read {client.home}/secret/\\udcff (add --allow-read '{client.home}/secret/\\udcff')"
    ]
