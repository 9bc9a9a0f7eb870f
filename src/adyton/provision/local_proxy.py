"""A proxy server as a child process of its client: started, listened to until it is there, and ended. Without grpc."""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from adyton.errors import AdytonError, DeadlineError, PlatformError, UnreachableError, UsageError
from adyton.provision.budget import Budget
from adyton.provision.first_line import CONNECTED, LISTENING
from adyton.remote.address import SOCKET_PATH
from adyton.stopped import STOPPED_SECONDS, stopped

START_TIMEOUT = 20.0  # seconds until it must have said where it listens
LOOK_SECONDS = 0.5  # between two looks at whether it was stopped
STOP_TIMEOUT = 5.0  # seconds for it to end by itself
SOCKET = "proxy.sock"
SECRET_VARIABLE = "ADYTON_LAUNCH_SECRET"  # noqa: S105 - the name of a variable
PARENT_VARIABLE = "ADYTON_LAUNCH_FD"
DIRECTORY_VARIABLE = "ADYTON_LAUNCH_DIRECTORY"
CERTIFICATE_VARIABLE = "ADYTON_LAUNCH_CERTIFICATE"  # PEM: what the client shows that waits; empty on a unix socket
_OF_SERVERS = tuple(  # variables that are meant for servers of one's own, or say how this command prints
    f"ADYTON_{name}"
    for name in (
        *("SSL_CERT", "SSL_KEY", "CLIENT_CA", "TOKEN_FILE", "SECURITY_TYPE", "HOST_ADDRESS", "LISTEN", "JSON"),
        "SEALED_DIRECTORY",
    )
)
_ERRORS: dict[int, type[AdytonError]] = {kind.exit_code: kind for kind in (PlatformError, UsageError)}


class LocalProxy:
    """Started once, by `listen` or `dial`; it ends when this process does, however that ends. `end` it, also when starting it fails."""

    def __init__(self, command: str | None) -> None:
        """`command`: as a shell would take it; None: this Python's own `adyton proxy`. UsageError."""
        try:
            given = shlex.split(command or "")
        except ValueError as error:
            raise UsageError(f"--remote_proxy {command}: {error}") from None
        self._command = given or [sys.executable, "-P", "-m", "adyton.cli", "proxy"]
        self._process: subprocess.Popen[str] | None = None
        self._life = -1  # writing end of a pipe; the proxy server ends when it is closed
        self._directory = ""  # of socket and blobs; both sides remove it at their end, whichever comes last
        self._said: list[str] = []
        self._readers: list[threading.Thread] = []

    @property
    def started(self) -> bool:
        """And not ended."""
        return self._process is not None

    def listen(self, secret: str, budget: Budget) -> str:
        """Have it wait for a client that shows `secret`; where it does. UnreachableError, or why it did not start."""
        self._directory = _directory_for_socket()
        self._start(["--listen", f"unix:{self._directory}/{SOCKET}"], {SECRET_VARIABLE: secret})
        return self._first_line(LISTENING, "where it listens", budget)

    def dial(self, name: str, address: str, certificate: str, secret: str, budget: Budget) -> None:
        """Have it dial `address`, which texts call `name`, show `secret` there, and be shown `certificate`. As `listen` raises."""
        self._directory = _directory_for_socket()
        self._start(["--host_address", address], {SECRET_VARIABLE: secret, CERTIFICATE_VARIABLE: certificate})
        self._first_line(CONNECTED, f"that it has reached {name}", budget)

    def _start(self, arguments: list[str], told: dict[str, str]) -> None:
        reading, self._life = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env={
                    **{name: value for name, value in os.environ.items() if name not in _OF_SERVERS},
                    **told,
                    PARENT_VARIABLE: str(reading),
                    DIRECTORY_VARIABLE: self._directory,
                },
                pass_fds=(reading,),
                start_new_session=True,  # an interrupt at the terminal is for the application, which ends its enclave in order
            )
        except OSError as error:
            raise UnreachableError(
                f"the proxy server cannot be started: {shlex.join(self._command)}: {error.strerror}. Check --remote_proxy"
            ) from None
        finally:
            os.close(reading)
        self._read("adyton-proxy-log", self._keep)

    def _read(self, name: str, target: Callable[[subprocess.Popen[str]], None]) -> None:
        thread = threading.Thread(target=target, args=(self._process,), name=name, daemon=True)
        self._readers.append(thread)
        thread.start()

    def _keep(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self._said = [*self._said[-19:], line.rstrip()]

    def _first_line(self, begin: str, what: str, budget: Budget) -> str:
        """What follows `begin` in its first line."""
        process = self._process
        assert process is not None
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()

        def read(process: subprocess.Popen[str]) -> None:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    lines.put(line)
            lines.put("")

        self._read("adyton-proxy-ready", read)
        line = self._await(lines, process, what, budget)
        if not line.startswith(begin):
            status = _kill(process)
            self._join()
            raise self._start_error(line, status)
        return line.removeprefix(begin).strip()

    def _await(self, lines: queue.SimpleQueue[str], process: subprocess.Popen[str], what: str, budget: Budget) -> str:
        seconds, still = budget.left(START_TIMEOUT), 0.0
        until = time.monotonic() + seconds
        while True:
            try:
                return lines.get(timeout=max(0.0, min(LOOK_SECONDS, until - time.monotonic())))
            except queue.Empty:
                still = still + LOOK_SECONDS if stopped(process.pid) else 0.0
            if still >= STOPPED_SECONDS or time.monotonic() >= until:
                why = "was stopped by a signal" if still else f"did not say within {START_TIMEOUT:g} s {what}"
                if not still and seconds < START_TIMEOUT:
                    raise DeadlineError(
                        f"the proxy server had not said {what} when the load's {budget} were over: give it a longer timeout"
                    )
                raise UnreachableError(f"the proxy server ({shlex.join(self._command)}) {why}. Check --remote_proxy")

    def _start_error(self, line: str, status: int) -> AdytonError:
        """What its own error was, if its exit status says that it had one."""
        text = "\n".join(self._said).removeprefix("adyton: ").strip()
        kind = _ERRORS.get(status)
        if kind is not None and text:
            return kind(text)
        first = f"its first line was {line.strip()[:80]!r}" if line else f"it ended with status {status}"
        return UnreachableError(
            f"the proxy server ({shlex.join(self._command)}) did not start: {first}. {text}".rstrip()
        )

    def _join(self) -> None:
        """Until all that it said, which has ended, has been read; but a process that it left behind may go on."""
        for thread in self._readers:
            thread.join(timeout=1)

    def end(self) -> str:
        """End it. Idempotent. The last lines that it wrote to its standard error."""
        process, self._process = self._process, None
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
        if process is not None:
            if stopped(process.pid):  # by a signal: it will not end by itself
                process.kill()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                _kill(process)
            self._join()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
        return "\n".join(self._said)


def _kill(process: subprocess.Popen[str]) -> int:
    """End it and, where it is a script, what it runs; how it ended."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
    return process.wait()


def _directory_for_socket() -> str:
    """A new folder whose path is short enough for that of a unix socket in it, however deep TMPDIR is."""
    directory = tempfile.mkdtemp(prefix="adyton-")
    if len(os.fsencode(directory)) <= SOCKET_PATH - len(f"/{SOCKET}"):
        return directory
    os.rmdir(directory)
    return tempfile.mkdtemp(prefix="adyton-", dir="/tmp")
