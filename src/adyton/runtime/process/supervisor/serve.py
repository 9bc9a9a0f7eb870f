"""One enclave's supervisor at work: the attested channel on one side, the guest's links, files and output on the other.

    relay socket ──► channel ──► session ──► links ──► guest threads        (entries)
                         ▲           ▲          │
                         └───────────┴──── host calls of registered functions
    /dev/fuse ──► FileRequests ──► session (pair 0) ──► client and back
    the filter's listener ──► SystemCalls ──► SocketCalls ──► session (pair 0, "net") ──► client and back;  stand-ins ◄─► Pump

Single-threaded. The guest's bytes, its file requests and the relay's bytes are hostile; each breach ends the enclave with a reason,
never the supervisor with a traceback.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Literal

import msgspec

from adyton.allocator import give_back_freed_memory
from adyton.attestation.identity import EnclaveIdentity
from adyton.communicator import session as communicator
from adyton.communicator.frames import CallFrame, ReplyFrame
from adyton.communicator.joining import GRACE_SECONDS
from adyton.communicator.messages import Counts, LoadRequest, Raised, RaisedKind, decode, encode
from adyton.errors import AdytonError, ResourceLimitError
from adyton.runtime.process.guest import link as protocol
from adyton.runtime.process.guest.proofs import PROVE
from adyton.runtime.process.guest.run import ASIDE, LINK, STREAM, THREAD
from adyton.runtime.process.guest.sealing import SEAL
from adyton.runtime.process.guest.secrets import SECRET
from adyton.runtime.process.guest_start import FAILED, LISTENER, READY
from adyton.runtime.process.supervisor.bulk import Bulk
from adyton.runtime.process.supervisor.caching.coherence import coherence_of
from adyton.runtime.process.supervisor.calls import OwnPending, Pending
from adyton.runtime.process.supervisor.clock import Clock
from adyton.runtime.process.supervisor.connections import Connections
from adyton.runtime.process.supervisor.emulation import Emulation
from adyton.runtime.process.supervisor.file_requests import FileRequests
from adyton.runtime.process.supervisor.files import FileServer
from adyton.runtime.process.supervisor.function_calls import FunctionCalls
from adyton.runtime.process.supervisor.guest_process import GuestProcess, Link, Program, how_ended, kill
from adyton.runtime.process.supervisor.layout import Layout
from adyton.runtime.process.supervisor.loading import check_load, guest_load
from adyton.runtime.process.supervisor.loop import Loop, Outbox
from adyton.runtime.process.supervisor.memory_watch import MemoryWatch
from adyton.runtime.process.supervisor.notifications import Fetching, Note
from adyton.runtime.process.supervisor.output import Output
from adyton.runtime.process.supervisor.proofs import proof_links
from adyton.runtime.process.supervisor.proving import Prove, in_turn
from adyton.runtime.process.supervisor.sealed_loading import SealedLoading, SealedSettings
from adyton.runtime.process.supervisor.sealing import seal_links
from adyton.runtime.process.supervisor.secrets import secret_links
from adyton.runtime.process.supervisor.spans import Spans
from adyton.runtime.process.supervisor.stops import Stops
from adyton.runtime.process.supervisor.streams import Streams
from adyton.runtime.process.supervisor.waits import Waits
from adyton.stopped import STOPPED_SECONDS

READ_SIZE = 1 << 19
RETRY_SECONDS = 0.02  # for a link that the guest has no room for
END_MOMENT = 0.5  # seconds
TIDY_SECONDS = 20.0  # after anything happened: what it took of memory is given back to the system
MAX_ARRIVING = 1 << 31  # bytes that a guest, whose own memory is limited, may have its supervisor hold
# Bytes for the client, above which nothing more is taken from the guest's links: two messages of the largest.
MAX_UNSENT = 1 << 31
MAX_LOAD = 1 << 25  # bytes: what is decoded at once is many times as large in memory
NO_MORE_THREADS = "the enclave begins with no more threads at the moment: try again later"
PROOFS = 32  # that may wait to be made for the guest, and as many to ask brokers with: strangers who connect to it use up the first
THREAD_LINKS = 256  # threads of the guest's own that may hold a link


class Supervisor:
    """See the module. `ready` is called once the guest waits for its program. `directory`: see wanted.GuestThreads; `lists`: SocketCalls."""

    def __init__(
        self,
        control: socket.socket,
        guest: GuestProcess,
        program: Program,
        identity: EnclaveIdentity,
        prove: Prove,
        files: FileServer | None,
        ready: Callable[[], None],
        fetcher: Fetching | None = None,
        directory: Callable[[Note], str | None] = lambda _note: None,
        clock: Clock | None = None,
        watch: MemoryWatch | None = None,
        sealed: SealedSettings = SealedSettings(),  # noqa: B008 - frozen
        *,
        lists: bool = False,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self._guest = guest
        self._program = program
        self._identity = identity
        self._ready = ready
        self._clock = clock or Clock()
        self._watch = watch
        self._loop = Loop()
        self._session = communicator.Session(communicator.Side.ENCLAVE, passes=self._passes)
        self._requests: FileRequests | None = None
        if files is not None and guest.fuse is not None:
            self._requests = FileRequests(files, guest.fuse, self._session, self._loop, self._guarded)
        self.fuse = None if self._requests is None else self._requests.fuse
        self._patience = max(grace, STOPPED_SECONDS)
        self._connections = Connections(
            *(control, self._loop, self._session, identity, prove),
            *(self._from_client, self._loop.stop, self._flush, self._guarded, grace),
        )
        self._arrivals = self._connections.arrivals
        self._links: dict[int, Link] = {}
        self._thread_links: set[socket.socket] = set()
        self._paused: list[Link] = []  # until the client has taken some
        self._waits = files.waits if files is not None else Waits()
        self._spans = Spans(self._session.notify)
        streams: dict[Literal["stdout", "stderr"], int | None] = {"stdout": guest.stdout, "stderr": guest.stderr}
        self.output = Output(streams, self._loop, self._session, lambda: self._connections.joined, self._guarded)
        slow_down = self._connections.slow_down
        self._bulk = Bulk(self._session, self._read_link, slow_down)
        self._functions = FunctionCalls(self._session, self._bulk, self._waits, self._spans)
        self._streams = Streams(self._session, lambda: self._new_link(0, ASIDE), self.output.then, slow_down)
        self._emulation = Emulation(
            *(self._session, self._loop, self._guarded, fetcher, self._waits, self._requests, directory),
            lists=lists,
        )
        self._proofs = proof_links(self._loop, self._guarded, identity.digest(), in_turn(PROOFS, prove))
        self._secrets = secret_links(self._loop, self._guarded, identity.digest(), in_turn(PROOFS, prove))
        self._sealed = SealedLoading(self._requests, self._session, sealed)
        self._sealing = None if sealed.sealing is None else seal_links(self._loop, self._guarded, sealed.sealing)
        self._host_name = ""
        self._main: Link | None = None
        self._loaded = False  # a load was asked for
        self._running = False  # and has succeeded
        self._finalize: int | None = None  # the call
        self._arriving = 0  # bytes of the guest's messages that are not complete
        self._reason: str | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def run(self) -> str | None:
        """Serve until the relay goes away (None), or the guest ends or misbehaves (the reason, which the client was told)."""
        guest = self._guest
        guest.control.setblocking(False)
        self._connections.begin()
        self._loop.read(guest.control, self._guarded(self._from_control))
        if self._requests is not None:
            self._requests.begin()
        self._sealed.begin(self._loop, self._guarded)
        self.output.begin()
        if guest.pidfd is not None:
            self._loop.read(guest.pidfd, self._guest_ended)
            Stops(self._loop, guest.pidfd, self.end, self._patience).begin(self._guarded)
        if self._watch is not None:
            self._watch.attach(self._loop, self.end)
        self._loop.tidy(TIDY_SECONDS, give_back_freed_memory)
        flush = self._guarded(self._flush)
        try:
            while self._loop.turn():
                if self._waits.changed:
                    self._tell(self._waits.report())
                flush()
        finally:
            self._close()
        return self._reason

    def end(self, reason: str) -> None:
        """End the enclave, telling the client why."""
        if self._reason is not None:
            return
        self._reason = reason if self._watch is None else self._watch.reason or reason  # it has killed the guest then
        if self._requests is not None:
            self._requests.close()
        if self._guest.pidfd is not None:
            kill(self._guest.pidfd)  # what it printed before is all that is waited for
        try:
            self.output.finish()
            if self._connections.joined:
                if self._requests is not None:
                    self._requests.push()
                self._session.notify("ended", self._reason.encode())
                self._session.close(self._reason)
                self._connections.finish()
        except (OSError, AdytonError):
            pass  # the client is gone as well
        self._loop.stop()

    def _guarded(self, step: Callable[[], None]) -> Callable[[], None]:
        def guarded() -> None:
            try:
                step()
            except (AdytonError, OSError) as error:
                # The sockets of a guest that was killed before it had read all are reset.
                if not (isinstance(error, ConnectionError) and self._guest_ends()):
                    self.end(f"the enclave was ended: {error}")

        return guarded

    def _close(self) -> None:
        guest = self._guest
        if self._requests is not None:
            self._requests.close()
        if guest.pidfd is not None:
            kill(guest.pidfd)
            with suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, guest.pidfd, os.WEXITED)
        self.output.close()
        guest.control.close()
        for link in self._links.values():
            link.sock.close()
        for sock in self._thread_links:
            sock.close()
        for each in (self._main, self._streams.link):
            if each is not None:
                each.sock.close()
        self._secrets.close()
        self._proofs.close()
        if self._sealing is not None:
            self._sealing.close()
        self._emulation.close()
        self._connections.close()
        self._loop.close()

    def _guest_ends(self) -> bool:
        """A guest's sockets close a moment before its end can be seen: wait for that, and if it comes, say how it ended."""
        if self._guest.pidfd is None or not select.select([self._guest.pidfd], [], [], END_MOMENT)[0]:
            return False
        self._guest_ended()
        return True

    def _guest_ended(self) -> None:
        assert self._guest.pidfd is not None
        self._loop.forget(self._guest.pidfd)
        self.end(f"the enclave's process {how_ended(self._guest.pidfd)}")

    # -- the client's side --------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self._connections.flush():
            self._emulation.caught_up()
            self.output.caught_up()
            self._bulk.caught_up()
        if self._paused and self._session.pending_bytes <= MAX_UNSENT:
            paused, self._paused = self._paused, []
            for link in paused:
                self._read_link(link)

    def _from_client(self, event: communicator.Event) -> None:
        match event:
            case communicator.Called(call, 0, "enter", body, bulk) if self._running:
                self._waits.entered(call)
                trace = self._spans.entered(call) if self._spans.expected else None
                self._streams.enter(call, body, bulk, trace)
            case communicator.Called(call, 0, "items", body, bulk) if self._running:
                self._streams.items(call, body, bulk)
            case communicator.Called(call, pair, method, body):
                self._called(call, pair, method, body)
            case communicator.Begun(call, pair, method, sizes):
                link = self._link_of(pair, method)
                self._bulk.enters(call, link)
                if link is not None:
                    self._enter(link, call, pair, method, b"", sizes)
            case communicator.ReplyBegun():
                self._functions.reply_begun(event)
            case communicator.Piece(call, data, last, kind):
                if self._bulk.piece(kind, call, data, last=last):
                    self._refuse(call, NO_MORE_THREADS)
                elif last and kind == "reply":
                    self._functions.over(call)
            case communicator.Replied(call, ok, body, _):
                if not (
                    self._emulation.replied(call, ok=ok, body=body)
                    or self._streams.replied(call, body)
                    or self._functions.replied(call, body, ok=ok)
                ):
                    assert self._requests is not None
                    self._requests.replied(call, body, ok=ok)
            case communicator.Cancelled(call):
                self._streams.cancel(call)
            case communicator.Notified("net", body):
                self._emulation.take(body)
            case communicator.Notified("trace", body):
                self._spans.expect(body)
            case communicator.Notified("time", body):
                self._clock.tell(body)
            case communicator.Disposed(pair):
                link = self._links.pop(pair, None)
                if link is not None:
                    self._loop.forget(link.sock)
                    link.sock.close()
            case communicator.Notified("changed", body):
                if self._requests is not None:
                    self._requests.changed(body)
                    if self._requests.files.believed:
                        self._arrivals.hold(self._requests.files.believed)
            case communicator.Notified("happened", body):
                if self._requests is not None:
                    self._requests.happened(body)
            case communicator.Closed():
                self._loop.stop()
            case _:
                pass

    def _called(self, call: int, pair: int, method: str, body: communicator.Body) -> None:
        if method not in (("enter", "items") if pair == 0 else ("load", "enter", "stream", "run", "finalize")):
            self._refuse(call, f"no method {method!r} on pair {pair}")
        elif method == "load":
            if self._loaded or self._main is None:
                self._refuse(call, "the enclave is loaded already" if self._loaded else "the enclave has not started")
                return
            self._loaded = True
            self._load(call, pair, body)
        elif not self._running or self._main is None:
            # The guest must have no thread but its first one until its walls are up: the others would be outside of them.
            self._refuse(call, "the enclave is not loaded")
        elif method == "finalize":
            if self._main.stack:
                self._refuse(call, "the enclave is being loaded or finalized")
                return
            self._finalize = call
            self._enter(self._main, call, pair, method, body)
        elif (link := self._link_of(pair, method)) is None:
            self._refuse(call, NO_MORE_THREADS)
        else:
            self._enter(link, call, pair, method, body)

    def _passes(self, head: CallFrame | ReplyFrame) -> bool:
        """Whether a large call, or reply, goes to the guest as it comes."""
        if isinstance(head, ReplyFrame):
            return self._functions.made(head.call)
        return self._running and head.pair > 0 and head.method in ("enter", "stream", "run")

    def _link_of(self, pair: int, method: str) -> Link | None:
        """None: the guest's first thread is busy, and has many to begin with already."""
        link = self._links.get(pair)
        if link is None:
            with suppress(BlockingIOError):
                link = self._links[pair] = self._new_link(pair, STREAM if method == "stream" else LINK)
        return link

    def _refuse(self, call: int, message: str, kind: RaisedKind = "state") -> None:
        self._session.reply(call, False, encode(Raised(kind, "Refused", message)))

    def _load(self, call: int, pair: int, body: communicator.Body) -> None:
        if len(body) > MAX_LOAD:
            self._refuse(call, f"a load of {len(body)} bytes; at most {MAX_LOAD} are taken")
            return
        request = decode(body, LoadRequest)
        try:
            check_load(request)
            self._clock.load(request.time)
            layout = Layout(request.grants, request.working_directory)
        except AdytonError as error:
            self._refuse(call, str(error))
            return
        self._waits.keep = request.trace
        if self._requests is not None:
            self._requests.files.set_layout(layout, coherence_of(request.coherence))
            if request.streams.stdin:
                self._requests.files.open_standard_input()
        self._host_name = request.host_name
        caller = self._connections.caller
        load = guest_load(self._program, self._identity, request, caller, mount_tmp=not layout.needs_private_tmp)
        assert self._main is not None
        enter = partial(self._enter, self._main, call, pair, "load", msgspec.msgpack.encode(load))
        self._sealed.open(request, enter, partial(self._refuse, call))

    # -- the guest's side ---------------------------------------------------------------------------------------------

    def _new_link(self, pair: int, kind: bytes = LINK) -> Link:
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._hand_over(kind, other)
        return self._watch_link(mine, pair)

    def _hand_over(self, kind: bytes, link: socket.socket) -> None:
        try:
            socket.send_fds(self._guest.control, [kind], [link.fileno()])
        except BlockingIOError:
            if kind == ASIDE:  # the only one: what is sent over it meanwhile waits in it
                self._loop.later(RETRY_SECONDS, self._guarded(lambda: self._hand_over(kind, link)))
                return
            link.close()
            raise
        link.close()

    def _watch_link(self, sock: socket.socket, pair: int, *, own: bool = False) -> Link:
        link = Link(sock, Outbox(self._loop, sock, self._connections.go_on), pair, own)
        self._read_link(link)
        return link

    def _read_link(self, link: Link, on: bool = True) -> None:
        if link.sock.fileno() >= 0:
            self._loop.read(link.sock, self._guarded(partial(self._from_link, link)) if on else None)

    def _enter(
        self,
        link: Link,
        call: int,
        pair: int,
        method: str,
        body: communicator.Body,
        sizes: tuple[int, ...] = (),
    ) -> None:
        if self._waits.keep:
            self._waits.entered(call)
        if link.stack:
            self._waits.ended(link.sock)  # a nested entry is what its host call got
        link.pair = pair
        link.stack.append(("enter", call))
        self._streams.began(call, link, method)
        trace = self._spans.entered(call)
        # A bytearray is encoded alike.
        link.outbox.put(protocol.encode(protocol.Enter(method, body, call, trace, sizes)))  # type: ignore[arg-type]

    def _from_control(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._guest.control, 4096, 1)
        if (
            message == LISTENER
            and len(descriptors) == 1
            and not self._emulation.listens
            and self._guest.pidfd is not None
        ):
            # Sent before any code of the image ran
            self._emulation.listen(descriptors[0], self._guest, self._host_name)
            return
        received = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if message == THREAD and len(received) == 1:
            if len(self._thread_links) < THREAD_LINKS:
                self._thread_links.add(received[0])
                self._watch_link(received[0], 0, own=True)
            else:
                received[0].close()  # that thread's trouble only
            return
        if message == SEAL and len(received) == 1 and self._sealing is not None:
            self._sealing.take(received[0])
            return
        if message == SECRET and len(received) == 1:
            self._secrets.take(received[0])
            return
        if message == PROVE and len(received) == 1:
            self._proofs.take(received[0])
            return
        for sock in received:
            sock.close()
        if message == READY and self._main is None:
            self._main = self._new_link(0)
            self._ready()
        elif not message:
            self._loop.forget(self._guest.control)
            if self._guest.pidfd is None:
                self.end("the enclave ended")
        elif message.startswith(FAILED) and self._main is None:
            self.end(message[len(FAILED) :].decode("utf-8", "replace"))
        else:
            self.end(f"the enclave was ended: its guest sent an unexpected control message {message[:32]!r}")

    def _from_link(self, link: Link) -> None:
        if self._session.pending_bytes > MAX_UNSENT:
            self._loop.read(link.sock, None)
            self._paused.append(link)
            return
        try:
            data = link.sock.recv(READ_SIZE, socket.MSG_DONTWAIT)  # the guest may share the socket, and its flags
        except BlockingIOError:
            return
        except ConnectionResetError:
            if not link.own:
                raise
            data = b""  # that thread has closed it, and had an answer on it that it does not wait for
        if not data:
            self._loop.forget(link.sock)
            if link.own and link.passed is None:
                self._thread_links.discard(link.sock)
                self._arriving -= link.reader.held
                link.outbox.drop()
                link.sock.close()
            elif (link.busy or link is self._streams.link) and not self._guest_ends():
                self.end("the enclave was ended: one of its threads closed its link in the middle of a call")
            return
        held = link.reader.held
        messages = link.reader.receive(data)
        self._arriving += link.reader.held - held
        if self._arriving + self._streams.held > MAX_ARRIVING:
            self.end(f"the enclave was ended: its guest began messages of more than {MAX_ARRIVING} bytes together")
            return
        returned: list[tuple[int, protocol.Return]] = []  # of calls without a pair
        for message in messages:
            if isinstance(message, memoryview):
                (self._bulk.came if link.item is None else self._streams.piece)(link, message)
                continue
            unpaired = self._streams.from_guest(link, message)
            if unpaired is not None:
                if unpaired and message.sizes:
                    self._guest_returned(link, unpaired, message)
                elif unpaired:
                    returned.append((unpaired, message))
            elif isinstance(message, protocol.Return):
                if not link.stack or link.stack[-1][0] != "enter":
                    self.end("the enclave was ended: its guest returned from a call that nobody made")
                    return
                _, call = link.stack.pop()
                if link is self._main and message.ok:
                    self._running = True  # the first thing that it returns from is the load
                self._guest_returned(link, call, message)
                if link.stack:
                    self._waits.began(link.sock, "Call")
            else:
                if self._requests is not None:
                    self._requests.push()
                self._functions.called(link, message)
        if returned:
            self._returned(returned)

    def _guest_returned(self, link: Link, call: int, message: protocol.Return) -> None:
        if message.sizes:
            self._bulk.returns(link, call, message.sizes[0], encoded=message.encoded)
        self._returned([(call, message)])

    def _tell(self, counts: Counts | None) -> None:
        if counts is not None and self._connections.joined:
            self._session.notify("counts", encode(counts))

    def _returned(self, returned: list[tuple[int, protocol.Return]]) -> None:
        """What entries did to files has reached the client when their callers hear that they are done."""
        self._emulation.tell_counts()
        answers = [(call, self._streams.ended(call, message)) for call, message in returned]
        requests = self._requests
        if requests is not None:
            effects, pending = requests.files.settle(last=any(call == self._finalize for call, _ in returned))
            if effects:
                requests.do(effects)
            if pending is not None:
                if not isinstance(pending, OwnPending):
                    self._waits.began(pending, "Settle")
                pending.after.append(lambda _: self._settled(pending, answers))
                return
        self.output.then(partial(self._reply, answers))

    def _settled(self, pending: Pending, answers: list[tuple[int, protocol.Return]]) -> None:
        self._waits.ended(pending)
        self.output.then(partial(self._reply, answers))

    def _reply(self, answers: list[tuple[int, protocol.Return]]) -> None:
        for call, answer in answers:
            if self._waits.changed or self._waits.keep:
                self._tell(self._waits.report(call))
            self._spans.returned(call)
            try:
                if answer.sizes:
                    self._bulk.begin(call)
                else:
                    self._session.reply(call, answer.ok, answer.body)
            except ResourceLimitError as error:
                raised = Raised("raised", "ValueError", f"the result is too large: {error.message}", "ValueError")
                self._session.reply(call, ok=False, body=encode(raised))
