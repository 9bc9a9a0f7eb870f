"""What the client's sockets have of a connection to an enclave."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from adyton.errors import AdytonError, ConnectionLostError
from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.hostcall.client.executor import Executor
from adyton.remote.speaker import Speaker


class SocketWay:
    """See hostcall.client.socket_way.Way. `threads`: for steps that may wait; `fail` ends the connection."""

    def __init__(
        self, speaker: Speaker, executor: Executor, threads: ThreadPoolExecutor, fail: Callable[[AdytonError], None]
    ) -> None:
        self._speaker = speaker
        self._threads = threads
        self._fail = fail
        self.note = executor.note
        self.denied = executor.report
        self.bytes_pending = speaker.bytes_pending

    def send(self, *messages: net.FromClient) -> None:
        self._speaker.notify("net", map(net.parts, messages))

    def reply(self, call: int, result: net.Result | abi.Failed) -> None:
        self._speaker.reply_to(call, net.encode(result))

    def submit(self, step: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the enclave is being destroyed
            self._threads.submit(step)

    def failed(self, error: Exception) -> None:
        """End the connection: programs of the enclave wait for answers that will not come."""
        self._fail(
            ConnectionLostError(
                f"this client can serve no sockets any more, which is a defect of it: {error!r}. "
                "The outcome of calls under way is unknown. Load it again"
            )
        )
