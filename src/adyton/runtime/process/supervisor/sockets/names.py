"""Names: what the guest asks its name server, see `resolver`, is asked of the client, once for a name at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.runtime.process.supervisor.sockets import resolver
from adyton.runtime.process.supervisor.sockets.answering import MOST_WAITING, Answering
from adyton.runtime.process.supervisor.sockets.standin import Sender, StandIn

KEPT_ADDRESSES = 4096
KEPT_ANSWERS = 256
FRESH_SECONDS = 5.0  # that an answer is given again: a C library asks for a name that is not there a second time


class Names:
    """`sources`: addresses that names resolved to → the client's own address towards them, None where it has no way there."""

    def __init__(self, answering: Answering, own_name: str, now: Callable[[], float] = time.monotonic) -> None:
        self._a = answering
        self._own_name = own_name
        self._now = now
        self._answers: dict[str, tuple[float, net.Addresses]] = {}
        self.sources: dict[str, str | None] = {}
        self._asked: dict[str, list[tuple[StandIn, resolver.Query]]] = {}  # names that are being resolved

    def query(self, standin: StandIn, data: bytes) -> None:
        """A datagram that the guest sent to its name server."""
        query = resolver.parse(data, self._own_name)
        if query is None:
            return
        if query.name is None:
            self._reply_to_query(standin, resolver.own(query))
            return
        name = query.name
        until, answer = self._answers.get(name, (0.0, None))
        if answer is not None and self._now() < until:
            self._reply_to_query(standin, resolver.answer(query, answer))
            return
        waiting = self._asked.get(name)
        if waiting is not None:
            if len(waiting) < MOST_WAITING:
                waiting.append((standin, query))
            return
        self._asked[name] = [(standin, query)]
        self._a.client.request(net.Resolve(name), lambda result: self._resolved(name, result))

    def _resolved(self, name: str, result: net.Result | abi.Failed) -> None:
        found = result if isinstance(result, net.Addresses | abi.Failed) else abi.Failed("EIO")
        if isinstance(found, net.Addresses):
            if len(self.sources) > KEPT_ADDRESSES:
                self.sources.clear()
            self.sources.update((each.host, each.source) for each in found.addresses)
            if len(self._answers) >= KEPT_ANSWERS:
                self._answers.clear()
            self._answers[name] = (self._now() + FRESH_SECONDS, found)
        for standin, query in self._asked.pop(name, ()):
            if self._a.pump.knows(standin):
                self._reply_to_query(standin, resolver.answer(query, found))

    def _reply_to_query(self, standin: StandIn, data: bytes) -> None:
        self._a.pump.take_datagram(standin, Sender(resolver.ADDRESS, local=True), data)
