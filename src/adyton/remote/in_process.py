"""The in-process transport: an application of this process behind the same communicator, channel and type checks, without a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.remote.transport import SocketTransport

if TYPE_CHECKING:
    from adyton.trusted.application import TrustedApplication


def in_process(application: TrustedApplication) -> SocketTransport:
    """Start the application on threads of this process; how to reach it. Files that it opens are opened directly."""
    from adyton.runtime.launch import launch_in_process

    return SocketTransport(launch_in_process(application))
