"""The client's side of asking a proxy server about its processes: one gRPC call, and what its answer may hold."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError

from adyton.errors import ClosedError, DeadlineError, PlatformError, RemoteProtocolError
from adyton.processes_pb2 import ProcessesReply, ProcessesRequest, ProcessReport
from adyton.remote.connection import error_from

METHOD = "/adyton.Processes/Report"
NAMES = {ProcessReport.PROXY: "proxy", ProcessReport.SUPERVISOR: "supervisor", ProcessReport.GUEST: "guest"}


def ask(
    channel: grpc.Channel, target: str, metadata: tuple[tuple[str, str | bytes], ...], timeout: float
) -> dict[str, ProcessReport]:
    """What the proxy server behind `channel` reports, by the names of the processes. `timeout` in seconds.

    Raises ConnectionLostError, UnauthenticatedError, DeadlineError, ClosedError, PlatformError (it reports nothing of the kind) or
    RemoteProtocolError.
    """
    try:
        call = channel.unary_unary(METHOD, request_serializer=ProcessesRequest.SerializeToString)
        data: bytes = call(ProcessesRequest(), timeout=timeout, metadata=metadata)
    except ValueError:  # grpc's word for a channel that was closed
        raise ClosedError(
            f"the connection to {target} is closed: its processes cannot be asked about any more"
        ) from None
    except grpc.RpcError as error:
        match error.code():
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineError(f"{target} did not report its processes within {timeout:g} s") from None
            case grpc.StatusCode.UNIMPLEMENTED:
                raise PlatformError(f"{target} does not report its processes: is it an older adyton?") from None
        raise error_from(error, target, connected=True) from error
    return reports_of(data)


def reports_of(data: bytes) -> dict[str, ProcessReport]:
    """An answer's reports, by the names of the processes; kinds of which this version does not know are left out. RemoteProtocolError."""
    try:
        reply = ProcessesReply.FromString(data)
    except DecodeError as error:
        raise RemoteProtocolError(f"malformed report of processes: {error}") from None
    found: dict[str, ProcessReport] = {}
    for report in reply.processes:
        name = NAMES.get(report.kind)
        if name in found:
            raise RemoteProtocolError(f"two reports of the {name}")
        if name is not None:
            found[name] = report
    return found
