"""The guest's threads: the main one loads, finalizes, and enters the application for the first client thread; others have workers."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import select
import signal
import site
import socket
import sys
import sysconfig
import threading
import time
import traceback
import weakref
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import msgspec

from adyton.communicator.messages import LoadReply, Raised, Streams, decode, encode
from adyton.errors import RemoteProtocolError
from adyton.hostcall import abi
from adyton.image.layers import PACKAGES
from adyton.proto.values import BULK, Bulk
from adyton.runtime.process import root
from adyton.runtime.process.guest.application import Application
from adyton.runtime.process.guest.aside import Aside
from adyton.runtime.process.guest.calls import NOBODY_WAITS, Call, Calls, current
from adyton.runtime.process.guest.exceptions import exception_of
from adyton.runtime.process.guest.link import Enter, GuestLink, GuestLoad, HostCall, HostReturn, Return, returned
from adyton.runtime.process.guest.main_thread import MainThread
from adyton.runtime.process.guest.proofs import SupervisorProver
from adyton.runtime.process.guest.sealing import SupervisorSealer
from adyton.runtime.process.guest.secrets import SupervisorAsker
from adyton.trusted import callers, host_functions, proving, sealing, secrets, tracing

Prepare = Callable[[GuestLoad], list[str]]  # makes the process ready for the program; warnings
Find = Callable[[str], Any]  # "module:attribute" → the object, "module:" → the module
LINK = b"link"  # supervisor → guest: a new link, its descriptor attached
STREAM = b"stream"  # the same, of a pair that is no client thread's
ASIDE = b"aside"  # the link aside
THREAD = b"thread"  # guest → supervisor: a link for a thread that no client thread is paired with

_PACKAGES = f"{root.IMAGE}/{PACKAGES}"
# The interpreter as programs start it: with the image's modules, see root.py.
PYTHON = f"{root.VENV}/bin/{os.path.basename(sys.executable)}"
_ENVIRONMENT = {
    "HOME": root.IMAGE,
    "LANG": "C.UTF-8",
    "PATH": f"{root.VENV}/bin:{root.IMAGE}/bin:/usr/bin:/bin",
    "TMPDIR": "/tmp",  # noqa: S108 - the enclave's own
}

# A program may put its own in the places of these, as gevent does.
_poll, _Socket = select.poll, socket.socket

_RESULT: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(abi.Result)


class _GoneError(ConnectionError):
    """The supervisor has closed a link, or nobody waits for what it says."""


class Guest:
    """All that runs in one guest. `control`: SEQPACKET socket to the supervisor; the first LINK on it is the main thread's."""

    def __init__(
        self, control: socket.socket, prepare: Prepare, find: Find, sealer: sealing.Sealer | None = None
    ) -> None:
        self._control = control
        self._prepare = prepare
        self._find = find
        self._current = threading.local()
        self._links: weakref.WeakSet[GuestLink] = weakref.WeakSet()  # each is its thread's, and ends with it
        self._own: weakref.WeakSet[GuestLink] = weakref.WeakSet()  # that no client thread is paired with
        self._application: Application | None = None
        self._caller: callers.Caller | None = None
        self._calls = Calls()
        self._asker = SupervisorAsker(control)
        self._sealer = sealer or SupervisorSealer(control)
        self._prover = SupervisorProver(control)
        self._forked = False

    def connect(self, *, whole_process: bool) -> None:
        """Have what this thread, or any, calls of `adyton.trusted` come here."""
        host_functions.connection.connect(self.call_host, whole_process=whole_process)
        sealing.connection.connect(self._sealer, whole_process=whole_process)
        secrets.connection.connect(self._asker, whole_process=whole_process)
        proving.connection.connect(self._prover, whole_process=whole_process)

    def main(self) -> None:
        """Serve until the supervisor closes the control socket."""
        taken = self._take_link()
        if taken is None:
            return
        main_link = taken[1]
        self._become(main_link)
        try:
            message = main_link.receive()
            if message is None:
                return
            # There must be no other thread before the program is loaded: it would be outside of the walls.
            self._answer(main_link, message)
            main = MainThread()
            # None of threading's: a program sees its own threads, and what must be alone to change them (gevent) is.
            start_new_thread(self._keep_door, (main_link, main))
            self._become(None)
            with contextlib.suppress(OSError):  # the supervisor is gone, and so will be this process
                main.serve(self._answer_first, self._ended)
        finally:
            main_link.close()

    def _become(self, link: GuestLink | None) -> None:
        """Make host calls of this thread on that link; None: on one of its own, when it makes one."""
        self._current.link = link
        self.connect(whole_process=False)
        callers.tell(self._caller, whole_process=False)

    def _keep_door(self, main_link: GuestLink, main: MainThread) -> None:
        """Give new links to threads, and each finalize to the main thread, unless that is in a call."""
        # A signal that the program's threads block, to wait for it, must find no thread here that does not.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._become(main_link)
        poller = _poll()
        poller.register(self._control, select.POLLIN)
        poller.register(main_link, select.POLLIN)
        with contextlib.suppress(OSError):  # the supervisor is gone, and so will be this process
            while True:
                for descriptor, _ in poller.poll():
                    if descriptor == self._control.fileno():
                        taken = self._take_link()
                        if taken is None:
                            main.close()
                            return
                        kind, link = taken
                        if kind == ASIDE:
                            assert self._application is not None
                            become = functools.partial(self._become, None)
                            aside = Aside(
                                link, self._application, self._calls, become, self._finished, self.send_large, mask
                            )
                            start_new_thread(aside.run, ())
                        elif kind == STREAM or not main.take(link):
                            work = functools.partial(self._work, link, mask)
                            threading.Thread(target=work, name="adyton-entry", daemon=True).start()
                        continue
                    message = main_link.receive()
                    if message is None:
                        main.close()
                        return
                    done = allocate_lock()
                    done.acquire()
                    finalize = functools.partial(self._answer_first, main_link, message, done.release)
                    if not main.run(finalize):
                        finalize()
                    done.acquire()  # until then the link is that thread's

    def _answer_first(
        self, link: GuestLink, message: Enter | HostReturn, done: Callable[[], None] | None = None
    ) -> None:
        """In the main thread, or in its place."""
        self._current.link = link
        try:
            self._answer(link, message)
        finally:
            self._current.link = None
            if done is not None:
                done()

    def _take_link(self) -> tuple[bytes, GuestLink] | None:
        message, descriptors, _, _ = socket.recv_fds(self._control, 64, 1)
        if message not in (LINK, STREAM, ASIDE) or not descriptors:
            return None
        os.set_inheritable(descriptors[0], False)
        link = GuestLink(_Socket(fileno=descriptors[0]))
        self._links.add(link)
        return message, link

    def _work(self, link: GuestLink, mask: Iterable[int]) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._become(link)
        try:
            while (message := link.receive()) is not None:
                self._answer(link, message)
        except OSError:
            pass  # the supervisor is gone, and so will be this process
        finally:
            self._ended(link)

    def _ended(self, link: GuestLink) -> None:
        """No call comes on that link any more, whose thread this is."""
        if self._application is not None:
            self._application.end_of_thread()
        self._links.discard(link)
        link.close()

    def _answer(self, link: GuestLink, message: Enter | HostReturn) -> None:
        if not isinstance(message, Enter):
            raise TypeError("the supervisor answered a host call that nobody made")
        error: BaseException | None = None
        owed_around = link.owed  # by what this is nested in
        call = self._calls.find(message.call, aside=False)
        token = current.set(None if message.method in ("load", "finalize") else call)
        try:
            if message.trace is None:
                body = self._body(link, call, message)
            else:
                body = tracing.within(message.trace, functools.partial(self._body, link, call), message)
            ok = True
        except BaseException as raised:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of an entry end the entry only
            error = raised
            body = (self._application or Application(debug=False)).raised(raised)
            ok = False
        finally:
            current.reset(token)
        self._finished(error)
        while link.owed > owed_around:  # the client answers what was given up, too, and may call before
            owed = link.receive()
            if owed is None:
                return
            if isinstance(owed, Enter):
                self._answer(link, owed)
            else:
                link.owed -= 1
                link.bulk = ()
        self._calls.ended(call)
        link.send_bulk(*returned(ok, body))

    def _body(self, link: GuestLink, call: Call, message: Enter) -> bytes | Bulk:
        """Of the answer. Raises what the program does."""
        application = self._application
        call.bulk, link.bulk = link.bulk, ()
        if message.method == "load":
            return self._load(msgspec.msgpack.decode(message.body, type=GuestLoad))
        if application is None:
            raise RuntimeError(f"{message.method} before load")
        if message.method == "stream":
            call.results_to(link)
            return application.stream(message.body, call)
        if message.method == "enter":
            return application.enter(message.body, call)
        if message.method == "run":
            return application.run(message.body, call)
        return application.finalize(message.body)

    def _finished(self, error: BaseException | None) -> None:
        """Of each entry: what it printed goes out before the answer to its caller."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # the program closed it
        if self._forked:
            _end_forked(error)

    def _load(self, load: GuestLoad) -> bytes:
        self._asker.image = load.broker
        self._prover.identity = load.identity
        warnings = self._prepare(load)
        self._caller = load.caller
        callers.tell(self._caller, whole_process=False)
        self._application = Application(debug=load.debug)
        entries = self._application.load(self._find(load.entry), load.entry, load.entries, load.config)
        return encode(LoadReply(entries=entries, warnings=warnings, streams=self._application.streams()))

    def call_host(self, name: str, arguments: bytes, bulk: Sequence[bytes] = ()) -> bytes | Bulk:
        """Call a function of the client from any thread; nested entries run on this thread meanwhile. TimeoutError: no time is left to the
        call that this runs in, or nobody waits for it any more.
        """
        call = current.get()
        link = self._threads_link()
        own = link in self._own
        if len(arguments) >= BULK:
            arguments, bulk = b"", (arguments, *bulk)
        called = HostCall(name, arguments, None, tracing.current_span(), tuple(map(len, bulk)))
        if call is None:
            return self._called_host(link, called, bulk)
        call.check()
        # Of who waits on a client thread's link, that thread says when it waits no longer.
        with call.cancelling(link.interrupt) if own else contextlib.nullcontext():
            try:
                return self._called_host(
                    link, msgspec.structs.replace(called, left=call.left(), call=call.number), bulk
                )
            except TimeoutError:
                if call.until is None or call.until > time.monotonic():
                    raise  # the function did
            except _GoneError:
                if not (own and call.cancelled):
                    raise
        if own:
            self._drop_own(link)
        raise TimeoutError(f"{name}(): {NOBODY_WAITS}")

    def _called_host(self, link: GuestLink, called: HostCall, bulk: Sequence[bytes]) -> bytes | Bulk:
        name = called.name
        until = None if called.left is None else time.monotonic() + called.left
        link.send_bulk(called, *bulk)
        while True:
            try:
                message = link.receive(None if until is None else until - time.monotonic())
            except TimeoutError:
                link.owed += 1
                raise
            if message is None:
                raise _GoneError(f"{name}(): the client is gone")
            if isinstance(message, Enter):
                self._answer(link, message)
                continue
            beside, link.bulk = link.bulk, ()
            try:
                result = _RESULT.decode(message.body) if message.ok else decode(message.body, Raised)
            except (RemoteProtocolError, msgspec.MsgspecError, ValueError, RecursionError):
                raise OSError(5, f"{name}(): the client's answer cannot be read") from None
            if isinstance(result, Raised):
                raise exception_of(result)
            if isinstance(result, abi.Value) and len(beside) <= (not result.result):
                value = beside[0] if beside else result.result
                return value if result.encoded else Bulk(value)
            if isinstance(result, abi.Failed) and result.errno == "EACCES":
                raise PermissionError(13, f"the client's policy does not allow the call of {name}()")
            raise OSError(5, f"{name}(): the client answered with {type(result).__name__}")

    def _threads_link(self) -> GuestLink:
        """The calling thread's; made, if it has none."""
        link: GuestLink | None = getattr(self._current, "link", None)
        if link is None:
            link = self._current.link = self._own_link()
        return link

    def _drop_own(self, link: GuestLink) -> None:
        """Of the calling thread."""
        self._own.discard(link)
        self._links.discard(link)
        link.close()
        self._current.link = None

    def send_large(self, message: Return, data: bytes) -> None:
        """A large result of a call without a pair, on the calling thread's own link, for it may take long. OSError: the supervisor takes no more links."""
        link = self._threads_link()
        try:
            link.send_bulk(message, data)
        except OSError:
            self._drop_own(link)
            raise

    def _own_link(self) -> GuestLink:
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with other:
            socket.send_fds(self._control, [THREAD], [other.fileno()])
        link = GuestLink(mine)
        self._links.add(link)
        self._own.add(link)
        return link

    def forked(self) -> None:
        """A forked child must not speak on its parent's links."""
        self._forked = True
        for connection in (
            host_functions.connection,
            proving.connection,
            sealing.connection,
            secrets.connection,
        ):
            connection.connect(None, whole_process=True)
            connection.connect(None, whole_process=False)
        signal.set_wakeup_fd(-1)
        self._control.close()
        for link in list(self._links):
            link.close()


def _end_forked(error: BaseException | None) -> NoReturn:
    """A forked process that comes back from its parent's entry ends there, as a program that comes to its end; see sys.exit()."""
    status = 0
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        status = error.code or 0
    elif error is not None:
        status = 1
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)
            sys.stderr.flush()
    os._exit(status & 0xFF)


def find(entry: str) -> Any:
    """Import what `entry` names."""
    module_name, _, attribute = entry.partition(":")
    module = importlib.import_module(module_name)
    return getattr(module, attribute, None) if attribute else module


def _drop_output(streams: Streams) -> None:
    """What the client has not opened takes what is written, and drops it; a closed descriptor would be the next open file's."""
    for descriptor, opened in ((1, streams.stdout), (2, streams.stderr)):
        if not opened:
            null = os.open("/dev/null", os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


def main(
    control: socket.socket, finish: Callable[[bool, str, str], list[str]], sealer: sealing.Sealer | None = None
) -> None:
    """Run a guest process until its supervisor ends it.

    `finish(mount /tmp?, working directory, host name)` completes the sandbox and returns warnings; afterwards nothing can be undone. `sealer`: in
    place of the supervisor's sockets.
    """

    def prepare(load: GuestLoad) -> list[str]:
        os.environ.clear()
        os.environ.update(_ENVIRONMENT)
        os.environ.update(load.environment)
        # Python has worked these out in the zygote, which has another home directory.
        site.USER_BASE = site.USER_SITE = None
        site.getusersitepackages()  # and sets both
        sysconfig.get_config_vars()["userbase"] = site.USER_BASE
        os.environ["TZ"] = load.time_zone or "UTC"
        time.tzset()
        warnings = finish(load.mount_tmp, load.working_directory, load.host_name)
        os.umask(load.umask)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        _drop_output(load.streams)
        if load.logging is not None:
            from adyton.runtime.process.guest.log import set_up

            warnings += set_up(load.logging, load.name)
        callers.tell(load.caller, whole_process=True)
        sys.argv = [load.entry.partition(":")[0]]
        sys.executable = PYTHON
        sys.path.insert(0, root.IMAGE)
        if os.path.isdir(_PACKAGES):
            # As anywhere, behind the standard library; before the runtime's own, of which an image holds none.
            place = sys.path.index(root.LIBRARIES) if root.LIBRARIES in sys.path else len(sys.path)
            sys.path.insert(place, _PACKAGES)
        return warnings

    guest = Guest(control, prepare, find, sealer)
    guest.connect(whole_process=True)
    os.register_at_fork(after_in_child=guest.forked)
    guest.main()
