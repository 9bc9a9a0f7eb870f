"""What a client wants when it loads: checked, and as the guest is told of it."""

from __future__ import annotations

from adyton.attestation.identity import EnclaveIdentity
from adyton.communicator.messages import LoadRequest
from adyton.errors import UsageError
from adyton.hostcall.environment import check_environment, is_host_name, is_time_zone
from adyton.runtime.process.guest.link import GuestLoad
from adyton.runtime.process.supervisor.guest_process import Program
from adyton.runtime.process.supervisor.layout import is_normal
from adyton.trusted.callers import Caller


def check_load(request: LoadRequest) -> None:
    """UsageError for what no client may set."""
    check_environment(request.environment)
    if not is_time_zone(request.time_zone):
        raise UsageError(f"{request.time_zone[:80]!r} is no time zone")
    if not is_host_name(request.host_name):
        raise UsageError(f"{request.host_name[:80]!r} is no host name")
    if request.sealed and not is_normal(request.sealed):
        raise UsageError(f"{request.sealed[:80]!r} is no path of sealed files")


def guest_load(
    program: Program, identity: EnclaveIdentity, request: LoadRequest, caller: Caller | None, *, mount_tmp: bool
) -> GuestLoad:
    """For the guest's main thread."""
    return GuestLoad(
        entry=program.entry,
        entries=program.entries,
        debug=program.debug,
        mount_tmp=mount_tmp,
        config=request.config,
        working_directory=request.working_directory,
        time_zone=request.time_zone,
        environment=request.environment,
        name=request.name,
        host_name=request.host_name,
        streams=request.streams,
        logging=request.logging,
        umask=request.umask,
        broker=None if program.broker is None else (program.broker.address, program.broker.key),
        caller=caller,
        identity=identity,
    )
