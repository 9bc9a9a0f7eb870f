"""The code of `make bench-hostcalls`, with little of everything: that it measures what it says, not what comes out."""

from __future__ import annotations

import json
import socket
import threading
import time

import bare_stream
import echo_server
import hostcall_program
import hostcalls
import pytest
import relayed_stream
from delay_proxy import delayed


@pytest.fixture
def echo():
    with echo_server.server() as port:
        yield port


@pytest.mark.parametrize("delay", [0, 30])
def test_the_delay_proxy_carries_all_in_order_and_a_round_trip_takes_as_long_as_was_said(echo, delay):
    data = bytes(range(256)) * 8192
    with delayed(echo, delay) as port, socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.monotonic()
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        assert time.monotonic() - start >= delay / 1000
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        got = bytearray()
        while len(got) < len(data):
            got += sock.recv(1 << 16)
        sender.join()
        assert got == data
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_the_delay_proxy_closes_what_cannot_be_reached():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens there
        with delayed(taken.getsockname()[1], 0) as port, socket.create_connection(("127.0.0.1", port)) as sock:
            assert sock.recv(1) == b""


@pytest.mark.parametrize("way", ["up", "down", "echo"])
@pytest.mark.parametrize("stream", [bare_stream, relayed_stream])
def test_the_streams_to_compare_with_carry_what_they_are_asked_for(stream, way):
    with stream.server() as port:
        assert stream.seconds(port, way, 1000, 3 * bare_stream.PIECE + 1) > 0


def test_the_workloads_run_plainly(tmp_path, echo):
    path = str(tmp_path / "file")
    assert hostcall_program.write_file(path, 1 << 16)[0] == 1 << 16
    assert hostcall_program.read_file(path)[0] == 1 << 16
    assert hostcall_program.walk(str(tmp_path))[:2] == (1, 1 << 16)
    assert hostcall_program.cached(path, 10) > 0
    assert hostcall_program.answered(str(tmp_path / "private"), 10) > 0
    assert hostcall_program.echo("127.0.0.1", echo, 1 << 18)[0] == 1 << 18
    assert hostcall_program.sqlite(str(tmp_path / "a"), 9, 2, 3)[0] == hostcall_program.database_digest(
        str(tmp_path / "a")
    )


@pytest.mark.sandbox
def test_rows_have_their_figures_their_goals_and_go_into_a_file(tmp_path, capfd, monkeypatch):
    results = tmp_path / "results" / "hostcalls.json"
    hostcalls.main(["--tiny", "--only", "walk, cached", "--delays", "1", "--results", str(results)])
    rows = {row["workload"]: row for row in json.loads(results.read_text())["rows"]}
    walk, cached = rows["walk 15 files in 3 directories"], rows["stat + pread of what is cached"]
    assert walk["seconds"] > walk["round_trips"] * 0.001 > 0
    assert walk["met"] == (walk["round_trips"] <= 9)
    assert (walk["delay"], cached["delay"], cached["plain"] > 0) == (1, 0, True)
    assert "walk 15 files in 3 directories" in capfd.readouterr().out


def test_a_workload_that_nobody_knows_is_refused(capfd):
    with pytest.raises(SystemExit):
        hostcalls.main(["--only", "raed"])
    assert "nothing is named raed: there are read, write" in capfd.readouterr().err
