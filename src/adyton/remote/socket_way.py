"""What the client's sockets have of a connection to an enclave."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.hostcall.client.executor import Executor

if TYPE_CHECKING:
    from adyton.remote.proxy_client import ProxyClient


class SocketWay:
    """See hostcall.client.socket_way.Way."""

    def __init__(self, client: ProxyClient, executor: Executor) -> None:
        self._client = client
        self.note = executor.note
        self.denied = executor.report
        self.failed = client.sockets_failed

    def send(self, *messages: net.FromClient) -> None:
        self._client.notify("net", map(net.parts, messages))

    def reply(self, call: int, result: net.Result | abi.Failed) -> None:
        self._client.replied_host_call(call, net.encode(result))

    def bytes_pending(self) -> int:
        return self._client.bytes_pending()

    def submit(self, step: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the enclave is being destroyed
            self._client.submit(step)
