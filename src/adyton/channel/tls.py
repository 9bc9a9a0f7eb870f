"""One end of a TLS 1.3 connection over memory: ciphertext in, plaintext out, and the reverse. Nothing is authenticated here.

A traffic key must not be used for ever. RFC 8446 section 5.5 allows 2^24.5 records of full size under one of AES-GCM, which is 2^34.5 blocks, or
2^38.5 bytes (360 GiB) of ciphertext in either direction; then somebody who sees it all tells it from random with a probability of (2^34.5)² / 2^129
= 2^-60. Here no connection comes to more than `MOST_BYTES`, 2^-63, and who dials replaces it at `KEY_BYTES` (2^-65). (It is done by another
connection, of which every key is new, the one of the key exchange too. pyOpenSSL has no call for TLS's own KeyUpdate, and OpenSSL makes none by
itself.)
"""

from __future__ import annotations

import struct

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from adyton.attestation.binding import EXPORTER_LABEL, EXPORTER_SIZE
from adyton.channel.credential import MAX_CERTIFICATES, Credential, key_digest
from adyton.errors import RemoteProtocolError

_RECORD = 1 << 14  # bytes of plaintext in a TLS record, RFC 8446 section 5.1
_LONGEST = _RECORD + 256  # bytes of one as it is sent, without its head; section 5.2
_HEAD = struct.Struct(">BHH")  # of a record: type, version, length
KEY_BYTES = 1 << 36  # of ciphertext in one direction after which a connection is to be replaced
MOST_BYTES = 1 << 37  # … beyond which nothing is read
_UNREADABLE = (
    ValueError,
    x509.InvalidVersion,
    Warning,
)  # what cryptography says of a certificate; a warning where those are errors
_TAKE = 1 << 20  # bytes read at once from the memory that TLS writes to


def _context(credential: Credential | None) -> SSL.Context:
    """Settings of one connection. OpenSSL sends tickets whatever is set here, but they open nothing: a session can be resumed only
    with the context that made it, and no context makes two connections."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if credential is not None:
        certificate, *issuers = credential.certificates
        context.use_certificate(certificate)
        for each in issuers:
            context.add_extra_chain_cert(each)
        context.use_privatekey(credential.key)
    return context


class Tls:
    """See the module. `finished`: the handshake is complete; `ended`: the peer said that it sends no more; `due`: there may be ciphertext to take.

    `received`, `sent`: bytes of ciphertext.
    """

    def __init__(self, connection: SSL.Connection) -> None:
        self._connection = connection
        self.due = True
        self.finished = False
        self.ended = False
        self.received = self.sent = 0
        self._head = b""  # of a record of which not even that is there
        self._missing = 0  # bytes of a record that has begun

    @classmethod
    def client(cls, credential: Credential | None = None) -> Tls:
        """The client's end, which shows a credential if it has one; its first flight is due at once."""
        context = _context(credential)
        # The certificate says nothing: it is the evidence that vouches for the key.
        context.set_verify(SSL.VERIFY_NONE)
        connection = SSL.Connection(context, None)
        connection.set_connect_state()
        end = cls(connection)
        end._handshake()
        return end

    @classmethod
    def server(cls, credential: Credential | None = None, *, must_have_key: bool = False) -> Tls:
        """The server's end, with a fresh key if it is given none. It asks the client for one; `must_have_key`: and ends without it."""
        context = _context(credential or Credential.fresh())
        # That it holds the key is what a client proves. What its certificates say is judged elsewhere, or nowhere.
        context.set_verify(SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if must_have_key else 0), lambda *_: True)
        context.set_verify_depth(0)  # of the signatures between its certificates, which cost time, none is looked at
        connection = SSL.Connection(context, None)
        connection.set_accept_state()
        return cls(connection)

    def receive(self, ciphertext: bytes | memoryview) -> bytes:
        """The plaintext that the peer's bytes complete. RemoteProtocolError for what is no TLS 1.3, or was tampered with."""
        if not ciphertext or self.ended:
            return b""
        connection = self._connection
        self.received += len(ciphertext)
        if max(self.received, self.sent) > MOST_BYTES:
            raise RemoteProtocolError("the peer goes on with keys that were used for long enough")
        connection.bio_write(ciphertext)
        records = self._completed(ciphertext)
        if not self.finished:
            self.due = True
            if not self._handshake():
                return b""
        parts = []
        try:
            for _ in range(records):  # to find out that there is no more costs as much as to read
                parts.append(connection.recv(_RECORD))  # noqa: PERF401 - those before an error are kept
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.ended = True
        except SSL.Error as error:
            self.due = True  # an alert
            raise RemoteProtocolError(f"the peer's TLS cannot be read: {_reason(error)}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _completed(self, ciphertext: bytes | memoryview) -> int:
        """How many records these bytes complete: no fewer than have something to read. What cannot be one counts, so that it is told."""
        count, size = 0, len(ciphertext)
        at = self._missing
        if 0 < at <= size:
            count = 1
        while at < size:
            head = bytes(ciphertext[at : at + _HEAD.size - len(self._head)])
            at += len(head)
            head = self._head + head
            if len(head) < _HEAD.size:
                self._head = head
                break
            self._head = b""
            _, _, length = _HEAD.unpack(head)
            at += length
            if at <= size or length > _LONGEST:
                count += 1
        self._missing = max(0, at - size)
        return count

    def send(self, plaintext: bytes | memoryview) -> None:
        """Encrypt; the handshake must be finished. RemoteProtocolError: what the peer sent has ended the connection."""
        if plaintext:
            try:
                self._connection.sendall(plaintext)
            except SSL.Error as error:
                raise RemoteProtocolError(f"TLS takes nothing more for the peer: {_reason(error)}") from error
            self.due = True

    def data_to_send(self) -> bytes:
        """All ciphertext that is due."""
        if not self.due:
            return b""
        self.due = False
        parts = []
        try:
            while True:
                part = self._connection.bio_read(_TAKE)
                parts.append(part)
                if len(part) < _TAKE:
                    break
        except SSL.WantReadError:
            pass
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self.sent += len(data)
        return data

    def close(self) -> None:
        """Tell the peer that nothing more is sent, if the handshake got that far."""
        if self.finished:
            try:
                self._connection.shutdown()
            except SSL.Error:
                pass  # the connection has failed, and the peer knows
            self.due = True

    def exporter(self, role: bytes) -> bytes:
        """Bytes that only the two ends of this very connection have: RFC 8446 section 7.5."""
        exported: bytes = self._connection.export_keying_material(EXPORTER_LABEL, EXPORTER_SIZE, role)
        return exported

    def own_key_digest(self) -> bytes:
        """SHA-256 of the DER SubjectPublicKeyInfo of this end's certificate; b"" if it has none."""
        certificate = self._connection.get_certificate(as_cryptography=True)
        return b"" if certificate is None else key_digest(certificate)

    def peer_key_digest(self) -> bytes:
        """The same of the peer's. RemoteProtocolError for a certificate that cannot be read, or whose key is of no kind that is taken."""
        try:
            certificate = self._connection.get_peer_certificate(as_cryptography=True)
            return b"" if certificate is None else key_digest(certificate)
        except _UNREADABLE as error:
            raise RemoteProtocolError(f"the peer's certificate is of no use: {error}") from error

    def peer_certificates(self) -> tuple[bytes, ...]:
        """The peer's, in DER, its own first. RemoteProtocolError: they cannot be read, or are more than `MAX_CERTIFICATES` bytes."""
        try:
            own = self._connection.get_peer_certificate(as_cryptography=True)
            chain = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        except _UNREADABLE as error:
            raise RemoteProtocolError(f"the peer's certificates cannot be read: {error}") from error
        if own is None:
            return ()
        shown = tuple(each.public_bytes(Encoding.DER) for each in (own, *(each for each in chain if each != own)))
        if sum(map(len, shown)) > MAX_CERTIFICATES:
            raise RemoteProtocolError(f"the peer shows certificates of more than {MAX_CERTIFICATES} bytes")
        return shown

    def _handshake(self) -> bool:
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            raise RemoteProtocolError(f"no TLS 1.3 with the peer: {_reason(error)}") from error
        self.finished = True
        return True


def _reason(error: SSL.Error) -> str:
    details = error.args[0] if error.args else ()
    if isinstance(details, list | tuple) and details:
        return "; ".join(str(detail[-1]) for detail in details)
    return str(error) or type(error).__name__
