"""The broker's sockets, and its log between a decision and its answer.

    connection ──► Conversation ──► evidence judged, name looked up ──► record due ┐   all that are due at the end of a turn
    connection ◄── Conversation ◄── answer ◄───────────────────────────────────────┘── appended, on the disk

One thread. A log that cannot be written ends the broker, before anything is answered that is not in it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

from adyton.attestation.collateral import Collateral, Folder
from adyton.broker.audit import AuditLog, Make
from adyton.broker.config import BrokerConfig
from adyton.broker.conversation import Asked, Conversation, Left, Shown
from adyton.broker.decisions import Standing, decide, standing
from adyton.broker.records import Decided, Started, Stopped, bounded
from adyton.crypto.digest import digest_of
from adyton.errors import AdytonError, RemoteProtocolError, UsageError

DRAIN_SECONDS = 5.0  # that connections have at the end
_BACKLOG = 1024

Say = Callable[[str], None]


class _Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._conversation = Conversation(broker.config.credential)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._address = ""
        self._evidence = b""
        self._standing: Standing | None = None

    # -- asyncio's ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._address = _spelt(transport.get_extra_info("peername"))
        self._deadline = asyncio.get_running_loop().call_later(self._broker.config.limits.seconds, transport.abort)
        self._broker.began(self)

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._conversation.receive(data):
                match event:
                    case Shown(evidence):
                        self._shown(evidence)
                    case Asked(name):
                        self._asked(name)
                    case Left():
                        self._close()
            self._push()
        except (
            RemoteProtocolError
        ):  # it has shown no evidence that is good, or asks against the rules: nothing was given
            self._push()
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._deadline is not None:
            self._deadline.cancel()
        self._transport = None
        self._broker.ended(self)

    # -- ours ---------------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """End it at once."""
        if self._transport is not None:
            self._transport.abort()

    def _shown(self, evidence: bytes) -> None:
        self._evidence = evidence
        self._standing = standing(
            evidence, self._conversation.report_data, self._broker.collateral(), dt.datetime.now(dt.UTC)
        )
        if self._standing.findings:
            self._broker.record(self._decided("refused", "", self._standing), self._end)
        else:
            self._conversation.accept()

    def _asked(self, name: str) -> None:
        assert self._standing is not None
        decision = decide(self._broker.config.secrets, self._standing, name)
        stands = Standing(self._standing.identity, self._standing.tcb, decision.findings)
        made = self._decided("refused" if decision.secret is None else "released", name, stands)

        def answer() -> None:
            self._conversation.answer(decision.secret)
            self._push()
            self._close()

        self._broker.record(made, answer)

    def _end(self) -> None:
        self._conversation.end()
        self._push()
        self._close()

    def _decided(self, decision: str, name: str, stands: Standing) -> Make:
        def make(number: int, time: dt.datetime, before: str) -> Decided:
            return Decided(
                number=number,
                time=time,
                before=before,
                decision="released" if decision == "released" else "refused",
                peer=self._address,
                evidence=digest_of(self._evidence),
                secret=name,
                identity=stands.identity,
                tcb=stands.tcb,
                findings=bounded(stands.findings),
            )

        return make

    def _push(self) -> None:
        if self._transport is not None and (data := self._conversation.data_to_send()):
            self._transport.write(data)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Broker:
    """One that serves, until it is told to stop."""

    def __init__(self, config: BrokerConfig, log: AuditLog) -> None:
        self.config = config
        self._log = log
        self._peers: dict[_Peer, None] = {}  # the oldest first
        self._due: list[tuple[Make, Callable[[], None]]] = []
        self._failure: OSError | None = None
        self._stop = asyncio.Event()
        self.interrupted = False
        self._empty = asyncio.Event()
        self._folder = None if config.collateral is None else Folder(config.collateral, trusted=True)

    # -- for its peers ------------------------------------------------------------------------------------------------

    def began(self, peer: _Peer) -> None:
        """A connection."""
        self._peers[peer] = None
        if len(self._peers) > self.config.limits.connections:
            next(iter(self._peers)).abort()

    def ended(self, peer: _Peer) -> None:
        """It is gone."""
        self._peers.pop(peer, None)
        if not self._peers:
            self._empty.set()

    def record(self, make: Make, after: Callable[[], None]) -> None:
        """Have it in the log, and then call `after`."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._flush)
        self._due.append((make, after))

    def collateral(self) -> Collateral:
        """What vendors have published: it may change while the broker runs."""
        return Collateral() if self._folder is None else self._folder.collateral()

    def _flush(self) -> None:
        due, self._due = self._due, []
        if not due:
            return
        try:
            if self._failure is None:
                self._log.append([make for make, _ in due])
        except OSError as error:
            self._failure = error
            self._stop.set()
        if self._failure is None:
            for _, after in due:
                after()

    def _interrupt(self) -> None:
        self.interrupted = True
        self._stop.set()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def serve(self, listener: socket.socket, ready: Callable[[], None]) -> None:
        """Until `stop`; OSError: the log could not be written, and what was due was not answered."""
        config = self.config
        policies = {name: secret.expect for name, secret in config.secrets.items()}
        self._log.append(
            [
                lambda number, time, before: Started(
                    number=number, time=time, before=before, key=config.key, policies=policies
                )
            ]
        )
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        server = await loop.create_server(lambda: _Peer(self), sock=listener, backlog=_BACKLOG)
        ready()
        await self._stop.wait()
        server.close()
        if self._failure is None and self._peers:
            self._empty.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), DRAIN_SECONDS)
        for peer in list(self._peers):
            peer.abort()
        await asyncio.sleep(0)
        if self._failure is not None:
            raise self._failure
        self._flush()
        self._log.append([lambda number, time, before: Stopped(number=number, time=time, before=before)])


def serve(
    config: BrokerConfig, host: str, port: int, ready: Callable[[str], None], say: Say, *, new_log: bool = False
) -> None:
    """Be a broker at H:P until SIGTERM. `ready` is told where it listens; `say` what people should keep. `new_log`: there is none, and that is right.

    UsageError, IntegrityError (the log), AdytonError: the log could not be written any more.
    """
    log = AuditLog(config.log, config.log_key, begins=config.begins or new_log)
    try:
        if new_log and log.head.number:
            raise UsageError(
                f"--new-log: the log {config.log} is there: leave the option out to go on with it, or move it and its head away"
            )
        listener = _listen(host, port)
        say(f"key {config.key}")
        say(f"log {_spelt_head(log)}, signed by {config.log_key.signer}")

        async def run() -> bool:
            broker = Broker(config, log)
            await broker.serve(listener, lambda: ready(_spelt(listener.getsockname())))
            return broker.interrupted

        interrupted = asyncio.run(run())
        say(f"log {_spelt_head(log)}")
        if interrupted:
            raise KeyboardInterrupt
    except OSError as error:
        raise AdytonError(
            f"the log {config.log} cannot be written: {error.strerror or error.args[-1]}. The broker has ended; whoever had no answer got no secret"
        ) from error
    finally:
        log.close()
        for secret in config.secrets.values():
            secret.memory.wipe()


def _spelt_head(log: AuditLog) -> str:
    return f"head {log.head.number} {log.head.digest}" if log.head.number else "is new"


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(found[4][:2], family=found[0], backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(f"cannot listen at {host}:{port}: {error.strerror}") from error


def _spelt(address: object) -> str:
    """H:P."""
    if not isinstance(address, tuple):
        return ""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
