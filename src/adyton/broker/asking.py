"""The enclave's end of a broker's connection: bytes in, bytes out, until there is an answer. Its supervisor has this; the program has the socket.

So the program's code carries ciphertext only, and has the secret once it is given. That evidence speaks of this enclave, and of this connection
to a broker of these keys, does not depend on what it does.
"""

from __future__ import annotations

from collections.abc import Collection

from adyton.broker.protocol import Answer, Given, answers, encode_request
from adyton.channel.client import ClientChannel, Closed, Data, Established, EvidenceRequested
from adyton.errors import NotGenuineError, RemoteProtocolError, UnauthenticatedError


class Asking:
    """For one secret, on one connection. `answer`: None until there is one. `wanted`: the report data of evidence that is to be provided."""

    def __init__(self, name: str, keys: Collection[str], identity_digest: bytes) -> None:
        """`keys`: digests of those that the broker may have. UsageError: that is no name of a secret."""
        self._request = encode_request(name)
        self._keys = frozenset(keys)
        self._channel = ClientChannel(verifies=False, identity_digest=identity_digest)
        self._reader = answers()
        self.answer: Answer | None = None
        self.wanted: bytes | None = None

    def receive(self, data: bytes) -> None:
        """What the broker says; b"": it has closed the connection. NotGenuineError: it is another one. RemoteProtocolError: it is none.

        UnauthenticatedError: it ended the connection without an answer, as it does with evidence that is not good enough for any secret.
        """
        for event in self._channel.receive(data) if data else [Closed()]:
            match event:
                case EvidenceRequested(report_data):
                    self._check_key()
                    self.wanted = report_data
                case Established():
                    self._channel.send(self._request)
                case Data(plaintext):
                    if self.answer is not None:
                        raise RemoteProtocolError("the broker answered more than once")
                    self.answer = self._reader.receive(plaintext)
                    if self.answer is not None:
                        self._channel.close()
                case Closed() if self.answer is None:
                    raise UnauthenticatedError(
                        "the broker accepts no evidence of this enclave, or ended: its log says why"
                    )
                case _:
                    pass

    def provide(self, evidence: bytes) -> None:
        """What is wanted."""
        self.wanted = None
        self._channel.provide(evidence)

    def data_to_send(self) -> bytes:
        """What is due for the broker."""
        return self._channel.data_to_send()

    @property
    def secret(self) -> memoryview | None:
        """That was given; None: refused, or no answer yet. Gone with `wipe`."""
        return self.answer.secret if isinstance(self.answer, Given) else None

    def wipe(self) -> None:
        """Overwrite what was received."""
        self._reader.wipe()

    def _check_key(self) -> None:
        shown = f"sha256:{self._channel.peer_key_digest.hex()}"
        if shown not in self._keys:
            wanted = " or ".join(sorted(self._keys))
            raise NotGenuineError(
                f"the broker has the key {shown}, and is to have {wanted}: nothing was asked of it. If it has a new key, name that one"
            )
