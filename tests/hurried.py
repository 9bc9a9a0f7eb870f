"""Processes of adyton's that wait for less long than real ones, for tests of what comes after the wait.

How long the real ones wait: test_keepalive.
"""

from __future__ import annotations

import subprocess
import sys

# Seconds: an idle connection's ping is due after 1 (a server's: 1.5) and given up after 1, a silent one while somebody waits after 2 (by
# adyton.remote.pulse's ticks), a handshake after 2; who does not join after 3.
HURRIED = """
from adyton.remote import connection, line, relay

connection._PING_SECONDS = (1.0, 1.0)
shorter = {"grpc.http2.ping_timeout_ms": 1_000, "grpc.server_handshake_timeout_ms": 2_000}
for options in (connection._PATIENT, connection._SERVER_OPTIONS):
    options[:] = [(name, shorter.get(name, value)) for name, value in options]
line.LOST_AFTER = 2.0
relay.JOIN_SECONDS = 3.0
"""
_COMMAND = f"""
from adyton.remote import event_engine

event_engine.keep_off()  # as a proxy server does before it imports gRPC
{HURRIED}
from adyton.cli import main

main()
"""


def command(*arguments: str) -> list[str]:
    """The command line of `adyton ARGUMENTS`, which is `adyton proxy`."""
    return [sys.executable, "-c", _COMMAND, *arguments]


def start(*arguments: str, **attributes: object) -> subprocess.Popen[str]:
    """It as a process that goes on; the caller ends it."""
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True, **attributes)  # type: ignore[call-overload]
