"""The proxy server's word on an enclave's processes: itself, the supervisor and the guest, as the kernel's /proc has them.

It is for watching, and proves nothing: the server's operator can make these numbers up. Evidence says nothing of them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from adyton.errors import UnauthenticatedError
from adyton.processes_pb2 import ProcessesReply, ProcessesRequest, ProcessReport, ProcStat
from adyton.remote.connection import abort, digest, shown_by
from adyton.remote.proc_files import MAX_FILE, parse_children, parse_stat, parse_status

# What the kernel tells only to those who may trace the process: with the layout of its memory an attack on it is easier.
ADDRESSES = (
    *("startcode", "endcode", "startstack", "kstkesp", "kstkeip", "wchan"),
    *("start_data", "end_data", "start_brk", "arg_start", "arg_end", "env_start", "env_end"),
)


_INIT = 1  # its process id there


class ProcessReporters:
    """Those of a process's enclaves: one gRPC service. Whom an RPC asks, its token says."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reporters: dict[bytes, ProcessReporter] = {}  # by the digests of sessions

    def attach(self, supervisor: int, session: bytes) -> None:
        """Report on the enclave of the supervisor with that process id, to the client that shows `session`."""
        reporter = ProcessReporter(supervisor)
        with self._lock:
            self._reporters[digest(session)] = reporter

    def detach(self, session: bytes) -> None:
        """No more."""
        with self._lock:
            self._reporters.pop(digest(session), None)

    def handler(self) -> grpc.GenericRpcHandler:
        """The gRPC service."""
        # On the wire the same as unary. But gRPC would keep a thread for whoever sends no request, before we know who that is.
        method = grpc.stream_unary_rpc_method_handler(
            self._answer,
            request_deserializer=ProcessesRequest.FromString,
            response_serializer=ProcessesReply.SerializeToString,
        )
        handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler("adyton.Processes", {"Report": method})
        return handler

    def _answer(self, _: Iterator[ProcessesRequest], context: Any) -> ProcessesReply:
        shown = digest(shown_by(context))
        with self._lock:
            reporter = self._reporters.get(shown)
        if reporter is None:
            abort(context, UnauthenticatedError("no session of that token: provision an enclave first"))
            raise AssertionError
        return reporter.report()


class ProcessReporter:
    """Of one enclave, by its supervisor's process id. `proc`: where the kernel's proc file system is."""

    def __init__(self, supervisor: int, proc: str = "/proc") -> None:
        self._supervisor = supervisor
        self._proc = proc
        self._started: int | None = None  # its start time: a process id can be given to another process later
        with contextlib.suppress(OSError, ValueError):  # hidden from us; each report says so
            self._started = parse_stat(self._read(f"{supervisor}/stat")).starttime

    def report(self) -> ProcessesReply:
        """What can be read now. What cannot has an `error` in its place."""
        supervisor, started = self._supervisor, self._started
        return ProcessesReply(
            processes=[
                self._process(ProcessReport.PROXY, os.getpid(), lambda _: True),
                self._process(ProcessReport.SUPERVISOR, supervisor, lambda stat: stat.starttime == started),
                self._guest(supervisor, started),
            ]
        )

    def _guest(self, supervisor: int, started: int | None) -> ProcessReport:
        """Of the supervisor's two children the one that the program runs in; the other is the init of its pid namespace."""
        try:
            tasks = os.listdir(f"{self._proc}/{supervisor}/task")
            children = [
                pid for task in tasks for pid in parse_children(self._read(f"{supervisor}/task/{task}/children"))
            ]
            if parse_stat(self._read(f"{supervisor}/stat")).starttime != started:
                children = []  # of another process, which has its number now
        except (OSError, ValueError) as error:
            return ProcessReport(
                kind=ProcessReport.GUEST, error=f"the supervisor's children cannot be read: {_why(error)}"
            )
        if not children:
            return ProcessReport(kind=ProcessReport.GUEST, error="it has ended")
        reports = [
            self._process(ProcessReport.GUEST, pid, lambda stat: stat.ppid == supervisor) for pid in sorted(children)
        ]
        return next((each for each in reports if each.status.ns_pid[-1:] != [_INIT]), reports[0])

    def _process(self, kind: ProcessReport.Kind, pid: int, is_it: Callable[[ProcStat], bool]) -> ProcessReport:
        report = ProcessReport(kind=kind)
        try:
            stat = parse_stat(self._read(f"{pid}/stat"))
            if not is_it(stat):
                report.error = "it has ended"
                return report
            for name in ADDRESSES:
                stat.ClearField(name)
            stat.sc_clk_tck = os.sysconf("SC_CLK_TCK")
            stat.page_size = os.sysconf("SC_PAGE_SIZE")
            report.stat.CopyFrom(stat)
            report.status.CopyFrom(parse_status(self._read(f"{pid}/status")))
        except (OSError, ValueError) as error:
            report.error = f"it cannot be read: {_why(error)}"
        return report

    def _read(self, name: str) -> bytes:
        with open(f"{self._proc}/{name}", "rb") as file:
            return file.read(MAX_FILE + 1)


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError | ProcessLookupError):
        return "it has ended, or /proc hides it (hidepid)"
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
