"""What the guest's filter asks for, put together: the listener, who reads it, the sockets that it emulates, and their client."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from adyton.communicator.session import Session
from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.runtime.process.supervisor.file_requests import FileRequests
from adyton.runtime.process.supervisor.guest_process import GuestProcess
from adyton.runtime.process.supervisor.loop import Callback, Loop
from adyton.runtime.process.supervisor.memory_files import MemoryFiles
from adyton.runtime.process.supervisor.notifications import Fetching, Listener, Note
from adyton.runtime.process.supervisor.sockets.calls import SocketCalls
from adyton.runtime.process.supervisor.sockets.client import SocketClient
from adyton.runtime.process.supervisor.syncing import SyncCalls
from adyton.runtime.process.supervisor.system_calls import SystemCalls
from adyton.runtime.process.supervisor.waits import Waits
from adyton.runtime.process.supervisor.watching.calls import WatchCalls
from adyton.runtime.process.table_rows import Refused


class Emulation:
    """Of one guest. It begins with `listen`; the client's replies and messages about sockets are given to `replied` and `take`.

    `guarded`: what a callback of the loop is wrapped in; `requests`: the guest's for files; `directory`: see wanted.GuestThreads; `lists`: see SocketCalls.
    """

    def __init__(
        self,
        session: Session,
        loop: Loop,
        guarded: Callable[[Callback], Callback],
        fetcher: Fetching | None,
        waits: Waits,
        requests: FileRequests | None,
        directory: Callable[[Note], str | None],
        *,
        lists: bool,
    ) -> None:
        self._lists = lists
        self._session = session
        self._loop = loop
        self._guarded = guarded
        self._fetcher = fetcher
        self._watches: WatchCalls | None = None
        self._syncs: SyncCalls | None = None
        if requests is not None:
            self._watches = WatchCalls(requests.files, loop, guarded, requests.do, directory)
            self._syncs = SyncCalls(requests.files, requests.do)
            requests.tell_events = self._watches.tell
        self._client = SocketClient(session, waits)
        self._listener: Listener | None = None
        self._sockets: SocketCalls | None = None
        self._calls: SystemCalls | None = None

    @property
    def listens(self) -> bool:
        """Whether the guest's filter asks here already."""
        return self._listener is not None

    def listen(self, descriptor: int, guest: GuestProcess, own_name: str) -> None:
        """From now on the guest's filter asks here. `own_name`: its host name."""
        assert self._fetcher is not None
        self._listener = Listener(descriptor, self._fetcher)
        self._sockets = SocketCalls(
            *(self._listener, self._loop, self._client, guest.pid, own_name, self._count, self._fetcher.fetch),
            lists=self._lists,
        )
        assert guest.shared is not None
        memory_files = MemoryFiles(self._listener, guest.shared).handlers
        handlers = {**self._sockets.handlers, **memory_files}
        if self._watches is not None and self._syncs is not None:
            handlers |= {**self._watches.handlers(self._listener), **self._syncs.handlers(self._listener)}
        self._calls = SystemCalls(self._listener, handlers, self._tell)
        self._loop.read(self._listener, self._guarded(self._calls.receive))

    def _count(self, name: str, refused: Refused) -> None:
        assert self._calls is not None
        self._calls.count(name, refused)

    def _tell(self, call: abi.RefusedCall) -> None:
        self._session.notify("refused", msgspec.msgpack.encode(call))

    def replied(self, call: int, *, ok: bool, body: bytes | bytearray) -> bool:
        """Whether the client's reply was one about a socket."""
        return self._client.replied(call, ok, body)

    def take(self, body: bytes | bytearray) -> None:
        """The client's message about a socket. RemoteProtocolError."""
        message = net.from_client(body)
        if self._sockets is not None:
            self._sockets.pump.take(message)

    def caught_up(self) -> None:
        """The connection to the client may have room again."""
        if self._sockets is not None:
            self._sockets.pump.caught_up()

    def tell_counts(self) -> None:
        """Before the client hears of a result, it hears of what was refused meanwhile."""
        if self._calls is not None:
            self._calls.tell_counts()

    def close(self) -> None:
        if self._watches is not None:
            self._watches.close()
        if self._sockets is not None and self._listener is not None:
            self._sockets.close()
            self._listener.close()
