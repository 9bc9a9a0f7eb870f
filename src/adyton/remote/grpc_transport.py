"""A proxy client's transport over one bidirectional gRPC stream, dialled by the client."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import grpc

from adyton.processes_pb2 import ProcessReport
from adyton.remote import envelopes, rpc_threads
from adyton.remote.connection import SESSION_METADATA, Peer, error_from
from adyton.remote.process_query import ask
from adyton.remote.transport import Bytes

METHOD = "/adyton.Communicator/Communicate"


class GrpcTransport:
    """See remote.transport.Transport. Owns the channel."""

    def __init__(
        self, channel: grpc.Channel, target: Peer | str, session: bytes, metadata: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self._channel = channel
        self._target = target
        self._metadata: tuple[tuple[str, str | bytes], ...] = (*metadata, (SESSION_METADATA, session))
        self._call: Any = None

    def run(self, outgoing: Iterator[bytes]) -> Generator[Bytes, None, None]:
        """See Transport."""
        stub = self._channel.stream_stream(
            METHOD, request_serializer=envelopes.pack, response_deserializer=envelopes.unpack
        )
        connected = False
        try:
            self._call = rpc_threads.begin(stub, outgoing, self._metadata)
            for data in self._call:
                connected = True
                yield data
        except grpc.RpcError as error:
            raise error_from(error, self._target, connected=connected) from error
        finally:
            self._channel.close()

    def close(self) -> None:
        """See Transport."""
        if self._call is None:
            self._channel.close()
        else:
            self._call.cancel()  # `run` closes the channel, which may wait for a peer that takes nothing more

    def processes(self, timeout: float) -> dict[str, ProcessReport]:
        """See Transport. On the same connection as the stream."""
        return ask(self._channel, str(self._target), self._metadata, timeout)
