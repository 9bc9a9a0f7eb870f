"""What a proxy server tells the client of its enclave about processes, and to whom; and what a client makes of the answer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adyton.errors import (
    ClosedError,
    ConnectionLostError,
    DeadlineError,
    PlatformError,
    RemoteProtocolError,
    UnauthenticatedError,
    UsageError,
)
from adyton.processes_pb2 import ProcessesReply, ProcessReport, ProcStat
from adyton.remote.connection import SESSION_METADATA
from adyton.remote.process_query import METHOD, ask, reports_of
from adyton.remote.process_reports import ADDRESSES, ProcessReporter, ProcessReporters
from adyton.remote.transport import SocketTransport

SESSION = b"s" * 32
SHOWN = ((SESSION_METADATA, SESSION),)


@pytest.fixture
def family():
    """A parent that stands for a supervisor, with a child that stands for the guest: their process ids."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\ninput()\nchild.communicate(b'\\n')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    yield parent.pid, child
    parent.communicate("\n")


def by_kind(reply: ProcessesReply) -> dict[str, ProcessReport]:
    return reports_of(reply.SerializeToString())


@pytest.fixture
def served(family):
    """Where a reporter of that family is served, over gRPC."""
    reporter = ProcessReporters()
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([reporter.handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel, lambda: reporter.attach(family[0], SESSION)
    server.stop(None).wait()


def test_three_processes(family):
    reporter = ProcessReporter(family[0])
    reports = by_kind(reporter.report())
    assert {name: report.stat.pid for name, report in reports.items()} == {
        "proxy": os.getpid(),
        "supervisor": family[0],
        "guest": family[1],
    }
    for report in reports.values():
        assert report.error == ""
        assert report.stat.sc_clk_tck == os.sysconf("SC_CLK_TCK")
        assert report.stat.page_size == os.sysconf("SC_PAGE_SIZE")
        assert report.stat.comm == report.status.name != ""
        assert report.status.uid.real == os.getuid()
        assert report.status.vm_rss > 0
        assert not any(getattr(report.stat, name) for name in ADDRESSES)


def test_a_supervisor_that_has_ended(family):
    reporter = ProcessReporter(family[0])
    reporter._started -= 1  # as if its number had been given to another process meanwhile
    supervisor = by_kind(reporter.report())["supervisor"]
    assert (supervisor.error, supervisor.HasField("stat")) == ("it has ended", False)
    guest = by_kind(reporter.report())["guest"]  # nor is that one's child our guest
    assert (guest.error, guest.HasField("stat")) == ("it has ended", False)
    reports = by_kind(ProcessReporter(os.getpid() + (1 << 23)).report())  # beyond what Linux numbers
    assert not reports["supervisor"].HasField("stat")
    assert "has ended" in reports["guest"].error
    assert reports["proxy"].HasField("stat")


def test_a_supervisor_without_a_guest(family):
    assert by_kind(ProcessReporter(family[1]).report())["guest"].error == "it has ended"


def test_a_child_that_is_not_the_supervisors(family, tmp_path):
    proc = tmp_path
    for pid in family:
        (proc / str(pid)).mkdir()
        (proc / str(pid) / "stat").write_bytes(Path(f"/proc/{pid}/stat").read_bytes())
    task = proc / str(family[0]) / "task" / str(family[0])
    task.mkdir(parents=True)
    (task / "children").write_text(f"{family[1]} ")
    reporter = ProcessReporter(family[0], str(proc))
    reports = by_kind(reporter.report())
    assert reports["guest"].stat.pid == family[1]
    assert "status" not in {field.name for field, _ in reports["guest"].ListFields()}  # the file is not there
    assert "hides" in reports["guest"].error
    (proc / str(family[1]) / "stat").write_bytes(Path("/proc/self/stat").read_bytes())
    assert by_kind(reporter.report())["guest"].error == "it has ended"
    (proc / str(family[1]) / "stat").write_bytes(b"garbage")
    assert "parentheses" in by_kind(reporter.report())["guest"].error
    (task / "children").write_text("garbage")
    assert "no number" in by_kind(reporter.report())["guest"].error


@pytest.mark.netns
@pytest.mark.parametrize("hidepid", ["noaccess", "invisible"])
def test_a_proc_that_hides_other_users_processes(family, hidepid):
    """As nobody, under a /proc of its own: the process itself can be read, root's cannot, and nothing fails."""
    code = (
        "import os, sys\n"
        "from adyton.remote.process_reports import ProcessReporter\n"
        "from adyton.remote.process_query import reports_of\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"reporter = ProcessReporter({family[0]})\n"
        "for name, report in reports_of(reporter.report().SerializeToString()).items():\n"
        "    print(name, report.HasField('stat'), report.HasField('status'), bool(report.error))"
    )
    mount = f'mount -t proc -o hidepid={hidepid} proc /proc && exec "$@"'
    run = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.splitlines() == [
        "proxy True True False",
        "supervisor False False True",
        "guest False False True",
    ], run.stderr


def test_only_who_shows_the_sessions_token_is_told(served):
    channel, attach = served
    for metadata in ((), SHOWN):
        with pytest.raises(UnauthenticatedError, match="token"):  # before there is a session at all
            ask(channel, "host", metadata, 30)
    attach()
    for token in (b"", b"s" * 31, b"t" * 32, b"s" * 33):
        with pytest.raises(UnauthenticatedError, match="token"):
            ask(channel, "host", ((SESSION_METADATA, token),), 30)
    assert set(ask(channel, "host", SHOWN, 30)) == {"proxy", "supervisor", "guest"}
    assert set(ask(channel, "host", SHOWN, 30)) == {"proxy", "supervisor", "guest"}


def test_who_asks_and_sends_no_request_keeps_no_thread(served):
    """The server has two, and does not know these callers."""
    channel, attach = served
    attach()
    end = threading.Event()

    def nothing():
        end.wait()
        yield b""

    calls = [channel.stream_unary(METHOD).future(nothing()) for _ in range(4)]
    for call in calls:
        assert call.code() is grpc.StatusCode.UNAUTHENTICATED
    assert set(ask(channel, "host", SHOWN, 30)) == {"proxy", "supervisor", "guest"}
    end.set()


def test_a_closed_connection(served):
    channel, attach = served
    attach()
    channel.close()
    with pytest.raises(ClosedError, match="host is closed"):
        ask(channel, "host", SHOWN, 30)


def server_that(answers):
    """A gRPC server whose Report is `answers(request, context) -> bytes`, or that has none."""
    server = grpc.server(ThreadPoolExecutor(2))
    method = grpc.unary_unary_rpc_method_handler(answers)
    service, name = METHOD.strip("/").split("/")
    handlers = {name: method} if answers else {"Other": method}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, grpc.insecure_channel(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        pytest.param(None, PlatformError, "older", id="no-service"),
        pytest.param(b"\xff" * 9, RemoteProtocolError, "malformed", id="garbage"),
        pytest.param(b"\x0a\x02\x08\x01" * 2, RemoteProtocolError, "two reports of the proxy", id="twice"),
        pytest.param(bytes(9 << 20), ConnectionLostError, "lost", id="too-large"),
    ],
)
def test_servers_that_answer_wrongly(answer, kind, text):
    server, channel = server_that(answer and (lambda *_: answer))
    with channel, pytest.raises(kind, match=text):
        ask(channel, "host", SHOWN, 30)
    server.stop(None).wait()


def test_a_server_that_does_not_answer():
    release = threading.Event()
    server, channel = server_that(lambda *_: (release.wait(), b"")[1])
    with channel, pytest.raises(DeadlineError, match=r"within 0\.2 s"):
        ask(channel, "host", SHOWN, 0.2)
    release.set()
    server.stop(None).wait()


@given(st.binary())
def test_any_answer_is_reports_or_a_protocol_error(data):
    try:
        assert set(reports_of(data)) <= {"proxy", "supervisor", "guest"}
    except RemoteProtocolError:
        pass


def test_a_kind_of_process_that_this_version_does_not_know():
    reply = ProcessesReply(processes=[ProcessReport(kind=9), ProcessReport(kind=9), ProcessReport(kind=1)])
    assert set(by_kind(reply)) == {"proxy"}


def test_every_address_is_named():
    assert set(ADDRESSES) <= set(ProcStat.DESCRIPTOR.fields_by_name)


def test_an_enclave_of_this_process_has_none():
    with pytest.raises(UsageError, match="threads of this one"):
        SocketTransport(None).processes(1)
