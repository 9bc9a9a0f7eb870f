"""Running the command line in tests: a process of its own, output read, nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def adyton(
    *arguments: str, cwd: Path | str | None = None, timeout: float = 100, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`adyton ARGUMENTS`, with more environment."""
    return subprocess.run(
        [sys.executable, "-m", "adyton.cli", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


_SERVER = """
import functools
import sys
from adyton.cli import main
from adyton.provision import server
server.RelaySettings = functools.partial(server.RelaySettings, processes=int(sys.argv[1]))
sys.argv[1:] = ["serve", "--port", "0"]
main()
"""


def start_server(relay_processes: int) -> tuple[subprocess.Popen[str], str]:
    """A provision server, which has so many relay processes before any is shared, whatever the machine, and its URL."""
    process = subprocess.Popen([sys.executable, "-c", _SERVER, str(relay_processes)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, "grpc://" + process.stdout.readline().rpartition(" ")[2].strip()


def start(*arguments: str, **attributes: object) -> subprocess.Popen[str]:
    """`adyton ARGUMENTS` as a process that goes on; the caller ends it."""
    return subprocess.Popen(
        [sys.executable, "-m", "adyton.cli", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        **attributes,  # type: ignore[call-overload]
    )
