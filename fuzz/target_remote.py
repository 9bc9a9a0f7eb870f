"""Fuzz targets of what client and server tell each other: failures, where to dial back, processes, certificates."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import Any
from urllib.parse import unquote

import grpc
from draw import Draw, packed

from adyton.errors import AdytonError
from adyton.processes_pb2 import ProcessesReply
from adyton.remote import connection
from adyton.remote.certificates import Shown
from adyton.remote.dial_address import _seen, target_for
from adyton.remote.proc_files import parse_children, parse_stat, parse_status
from adyton.remote.process_metrics import GAUGES
from adyton.remote.process_query import reports_of


class _Failure(grpc.RpcError):
    """What grpc raises for a call that a server ended; all of it is the server's."""

    def __init__(self, data: bytes) -> None:
        draw = Draw(data, ("ImageError", "EnclaveError", "HostCallDeniedError", "annotations", "AdytonError", "text"))
        self._status = draw.pick(list(grpc.StatusCode))
        detail = draw.spoilt(packed([draw.text(), draw.text()])) if draw.often() else draw.rest()
        self._metadata = ((connection.ERROR_METADATA, detail),)

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return ""

    def trailing_metadata(self) -> Any:
        return self._metadata


def server_error(data: bytes) -> None:
    """What a server says of a failure."""
    error = connection.error_from(_Failure(data), "grpc://host", connected=bool(data and data[0] & 1))
    assert isinstance(error, AdytonError)


def dial_back(data: bytes) -> None:
    """Where a client wants to be dialled, and as what gRPC sees it: two lines."""
    offered, _, peer = data.decode("utf-8", "surrogateescape").partition("\n")
    target = target_for(offered, peer)
    if target.startswith("unix:"):
        return
    host, _, port = target.rpartition(":")
    assert 0 < int(port) < 65536
    dialled = ipaddress.ip_address(unquote(host).strip("[]"))
    assert dialled.is_loopback or dialled == _seen(peer)


def proc_file(data: bytes) -> None:
    """A file of /proc as it is, or the end of one that began well: its program chooses a process's name."""
    kind, text = data[:1], data[1:]
    if kind == b"\0":
        parse_stat(text)
    elif kind == b"\1":
        parse_status(text)
    elif kind == b"\2":
        parse_children(text)
    else:
        name, _, rest = text.partition(b"\n")
        stat = parse_stat(b"12 (" + name + b") S " + b"1 " * 49 + rest.replace(b")", b""))
        assert stat.ppid == 1
        assert stat.comm == name.decode("utf-8", "replace")


def process_report(data: bytes) -> None:
    """What a server says of processes, up to the numbers that are shown."""
    raw = data[:1] == b"\0"
    for report in reports_of(data[1:] if raw else _reply(Draw(data))).values():
        for gauge in GAUGES:
            value = gauge.value(report.stat)
            assert value is None or isinstance(value, float) or -(1 << 63) <= value < 1 << 63


def _reply(draw: Draw) -> bytes:
    reply = ProcessesReply()
    for _ in range(draw.below(4)):
        report = reply.processes.add(kind=draw.below(5), error=draw.text())
        for each in report.stat.DESCRIPTOR.fields:
            if draw.often():
                with contextlib.suppress(ValueError, TypeError):  # out of the field's range, or a text
                    setattr(report.stat, each.name, draw.number())
    return draw.spoilt(reply.SerializeToString())


def server_certificate(data: bytes) -> None:
    """What a server that is not trusted shows as its certificate."""
    shown = Shown.read(data)
    if shown is not None:
        assert (shown.issuer + shown.names + shown.wrong_dates(shown.until)).isprintable()
