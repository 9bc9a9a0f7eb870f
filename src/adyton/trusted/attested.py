"""A connection between two enclaves, once each has proven to the other what it is: a socket's calls over TLS that ends in the program."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from adyton.attestation.acl import Acl
from adyton.attestation.collateral import Collateral
from adyton.attestation.findings import refuse
from adyton.attestation.identity import EnclaveIdentity
from adyton.attestation.verify import validate, verify
from adyton.errors import RemoteProtocolError, UnauthenticatedError, UsageError
from adyton.trusted.proving import Prover

if TYPE_CHECKING:
    from adyton.channel.client import ClientChannel
    from adyton.channel.server import ServerChannel
    from adyton.channel.tls import Tls

_READ = 1 << 17  # bytes of ciphertext taken at once
_WRITE = 1 << 18  # bytes encrypted at once
_LAST_SECONDS = 10.0  # that a close may take to tell the peer so


class AttestedSocket:
    """What `adyton.trusted.channel.wrap` returns: as a connected socket that blocks. One thread may read and another write at the same time.

    `peer` is what the other enclave has proven to be. The peer's `shutdown(SHUT_WR)` or `close` reads as b""; a connection that was cut before that
    raises ConnectionResetError, behind all that had come; and one that was tampered with RemoteProtocolError, and what came just before that may be lost.

    It is of the process that made it. In a forked one it can only be closed, which the peer does not see: both would use the same key with the same nonces, and so give
    away to whoever watches what they encrypt.
    """

    makefile = socket.socket.makefile  # which keeps count in _io_refs

    def __init__(
        self, sock: socket.socket, tls: Tls, peer: EnclaveIdentity, early: bytes, forget: Callable[[], object]
    ) -> None:
        self.peer = peer
        self._sock = sock
        self._tls = tls
        self._forget = forget
        self._plain = memoryview(early)  # read, and not taken
        self._tls_lock, self._reading, self._writing = threading.Lock(), threading.Lock(), threading.Lock()
        self._failure: Exception | None = None  # of what is read
        self._written = "open"  # "finished": we said that no more comes; "broken": half a record was sent
        self._io_refs = 0
        self._closed = False
        self._process = os.getpid()

    @property
    def _forked(self) -> bool:
        return os.getpid() != self._process

    def _require_own(self) -> None:
        if self._forked:
            raise UsageError(
                "an attested connection belongs to the process that made it, and this is a fork of that: send and receive there"
            )

    # -- reading ------------------------------------------------------------------------------------------------------

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Up to so many bytes; b"": the peer sends no more."""
        if flags:
            raise ValueError("an attested socket takes no flags")
        if size < 0:
            raise ValueError(f"an attested socket has no {size} bytes")
        self._require_own()
        with self._reading:
            return bytes(self._take(size))

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As socket.recv_into."""
        if flags:
            raise ValueError("an attested socket takes no flags")
        self._require_own()
        view = memoryview(buffer).cast("B")
        if not 0 <= nbytes <= len(view):
            raise ValueError(f"an attested socket puts no {nbytes} bytes into a buffer of {len(view)}")
        with self._reading:
            taken = self._take(nbytes or len(view))
            view[: len(taken)] = taken
            return len(taken)

    def pending(self) -> int:
        """Bytes that the next `recv` has without waiting; others may be on their way. `select` on `fileno` knows nothing of these."""
        return len(self._plain)

    def _take(self, size: int) -> memoryview:
        while size and not self._plain and not self._tls.ended:
            if self._failure is not None:
                raise self._failure
            self._read_more()
        taken, self._plain = self._plain[:size], self._plain[size:]
        return taken

    def _read_more(self) -> None:
        ciphertext = self._sock.recv(_READ)
        try:
            if not ciphertext:
                if self._tls.ended:  # by a shutdown here
                    return
                raise ConnectionResetError(
                    errno.ECONNRESET, "the connection was cut: the other enclave has not said that it sends no more"
                )
            with self._tls_lock:
                self._plain = memoryview(self._tls.receive(ciphertext))
        except (ConnectionResetError, RemoteProtocolError) as error:
            self._failure = error
            raise

    # -- writing ------------------------------------------------------------------------------------------------------

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As socket.sendall."""
        if flags:
            raise ValueError("an attested socket takes no flags")
        self._require_own()
        view = memoryview(data).cast("B")
        with self._writing:
            if self._written != "open":
                raise BrokenPipeError(
                    errno.EPIPE, f"nothing can be sent: this end of the connection is {self._written}"
                )
            for at in range(0, len(view), _WRITE):
                with self._tls_lock:
                    self._tls.send(view[at : at + _WRITE])
                self._flush()

    def send(self, data: Any, flags: int = 0) -> int:
        """All of it."""
        self.sendall(data, flags)
        return memoryview(data).nbytes

    def _flush(self) -> None:
        with self._tls_lock:
            due = self._tls.data_to_send()
        try:
            self._sock.sendall(due)
        except OSError:
            self._written = "broken"
            raise

    # -- ends ---------------------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """SHUT_WR: the peer reads all that was sent, and then b"". SHUT_RD: nothing more is read here."""
        self._require_own()
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            with self._writing:
                self._finish()
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self._tls.ended = True  # first: who waits in `recv` is woken, and looks
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)

    def _finish(self) -> None:
        if self._written != "open":
            return
        self._written = "finished"
        with self._tls_lock:
            self._tls.close()
        self._flush()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """And what is still to be read is lost. While another thread is sending, the connection is cut instead. Files of `makefile` keep it open."""
        self._closed = True
        if self._io_refs <= 0:
            self._close()

    def cut(self) -> None:
        """End it so that the peer does not take it for an end in good order."""
        if self._forked:
            return
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        if self._forked:
            self._sock.close()
            return
        if self._writing.acquire(blocking=False):
            try:
                with contextlib.suppress(OSError):
                    self._sock.settimeout(_LAST_SECONDS)
                    self._finish()
            finally:
                self._writing.release()
        else:
            self.cut()
        self._forget()
        self._sock.close()

    def _decref_socketios(self) -> None:
        self._io_refs -= 1
        if self._closed and self._io_refs <= 0:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- as the socket below -------------------------------------------------------------------------------------------

    def settimeout(self, seconds: float | None) -> None:
        """Of each wait. A send that times out leaves the connection broken."""
        if seconds == 0:
            raise ValueError(
                "an attested socket blocks: have a thread for it, or use adyton.trusted.channel.dial and serve"
            )
        self._sock.settimeout(seconds)

    def gettimeout(self) -> float | None:
        """See socket."""
        return self._sock.gettimeout()

    def fileno(self) -> int:
        """Of the socket below, which carries ciphertext; -1: closed."""
        return self._sock.fileno()

    def getpeername(self) -> Any:
        """Of the connection, which says nothing about who is there: that is `peer`."""
        return self._sock.getpeername()

    def getsockname(self) -> Any:
        """See socket."""
        return self._sock.getsockname()

    def setsockopt(self, *arguments: Any) -> None:
        """See socket."""
        self._sock.setsockopt(*arguments)


def attested(
    sock: socket.socket, prover: Prover, expect: Acl, collateral: Collateral, timeout: float, *, server_side: bool
) -> AttestedSocket:
    """Both ends prove what they are. `sock` is the result's, and closed where there is none. For errors see `adyton.trusted.channel.wrap`."""
    try:
        prover.prepare()
        return _Meeting(sock, prover, expect, collateral, timeout, server_side=server_side).result()
    except BaseException:
        sock.close()
        raise


class _Meeting:
    """From a connection to an attested one."""

    def __init__(
        self,
        sock: socket.socket,
        prover: Prover,
        expect: Acl,
        collateral: Collateral,
        timeout: float,
        *,
        server_side: bool,
    ) -> None:
        from adyton.channel.client import ClientChannel
        from adyton.channel.server import ServerChannel

        self._sock = sock
        self._prover = prover
        self._expect = expect
        self._collateral = collateral
        self._until = time.monotonic() + timeout
        digest = prover.identity.digest()
        self._channel: ClientChannel | ServerChannel = (
            ServerChannel(digest, verifies=True, programs=True)
            if server_side
            else ClientChannel(verifies=True, identity_digest=digest, programs=True)
        )
        self._peer: EnclaveIdentity | None = None
        self._early = b""
        self._key = b""  # our own's digest

    def result(self) -> AttestedSocket:
        with self._own_timeout():
            try:
                self._send()
                while not self._channel.established:
                    self._wait()
                    data = self._sock.recv(_READ)
                    if not data:
                        raise ConnectionResetError(
                            errno.ECONNRESET, "the connection was cut before both ends had proven what they are"
                        )
                    if self._receive(data):
                        break
            except BaseException:
                self._part()
                raise
        assert self._peer is not None
        forget = partial(self._prover.own_keys.discard, self._key)
        return AttestedSocket(self._sock, self._channel.release(), self._peer, self._early, forget)

    def _receive(self, data: bytes) -> bool:
        """Whether it is over."""
        from adyton.channel.events import Closed, Data, Established, EvidenceReceived, EvidenceRequested

        over = False
        for event in self._channel.receive(data):
            match event:
                case EvidenceRequested():
                    # Before the other end has our evidence: it looks, if it is this enclave too.
                    self._key = self._channel.asked.key_digest
                    self._prover.own_keys.add(self._key)
                    self._channel.provide(self._prover.prove(self._channel.asked, self._left()))
                case EvidenceReceived(evidence):
                    self._peer = self._judged(evidence)
                    self._channel.accept()
                case Established():
                    over = True
                case Data(plaintext):
                    self._early += plaintext
                case Closed() if not over:
                    raise UnauthenticatedError(
                        "the other end does not accept this enclave, or ended: what it holds against it, it says on its own side"
                    )
                case _:
                    pass
        self._send()
        return over

    def _judged(self, evidence: bytes) -> EnclaveIdentity:
        """AttestationError, with every finding."""
        verified = verify(evidence, self._collateral, dt.datetime.now(dt.UTC))
        if not verified.identity_digest:
            raise refuse("binding", "evidence", "adyton's, which says of which image it is", "a platform's alone")
        identity = validate(verified, self._expect, self._channel.report_data(verified.identity_digest))
        if self._channel.peer_key_digest in self._prover.own_keys:
            raise refuse(
                "binding", "the other end", "another enclave", "this very one: its connection was led back to it"
            )
        return identity

    def _left(self) -> float:
        """Seconds. TimeoutError."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return left

    def _wait(self) -> None:
        self._sock.settimeout(self._left())

    def _send(self) -> None:
        due = self._channel.data_to_send()
        if due:
            self._wait()
            self._sock.sendall(due)

    def _part(self) -> None:
        """Say that nothing comes, if that can be said."""
        self._channel.close()
        self._prover.own_keys.discard(self._key)
        with contextlib.suppress(Exception):
            self._send()

    @contextlib.contextmanager
    def _own_timeout(self) -> Iterator[None]:
        before = self._sock.gettimeout()
        try:
            yield
        finally:
            if self._sock.fileno() >= 0:
                self._sock.settimeout(before)
