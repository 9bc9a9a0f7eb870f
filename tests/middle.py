"""A man in the middle of an attested channel: a gRPC server that passes a client on to a proxy server, in its own way, and records all that it learns.

    middle.py TRICK LISTEN TARGET OTHER PROGRAM RECORD

LISTEN: where clients come, HOST:PORT; its first line of output is HOST:PORT. TARGET: the proxy server of the client's enclave; OTHER: another one, that
this loads PROGRAM in, if the trick wants a genuine enclave of its own. RECORD: a file that all bytes of both directions are written to, as they came, and as far
as they can be read.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from adyton.channel.client import ClientChannel, EvidenceReceived
from adyton.channel.messages import Evidence, MessageReader, encode
from adyton.channel.tls import Tls
from adyton.errors import RemoteProtocolError
from adyton.image.build import build_file
from adyton.image.oci import Image
from adyton.provision.client import RemoteProvision
from adyton.remote import envelopes
from adyton.remote.connection import SESSION_METADATA
from adyton.remote.grpc_transport import METHOD

ENDS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class Stream:
    """Of the communicator's, to a proxy server: bytes of the enclave's channel."""

    def __init__(self, target: str, token: bytes) -> None:
        self._channel = grpc.insecure_channel(target, ENDS)
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method = self._channel.stream_stream(METHOD, envelopes.pack, envelopes.unpack)
        self._incoming = method(iter(self._outgoing.get, None), metadata=((SESSION_METADATA, token),))

    def say(self, data: bytes) -> None:
        if data:
            self._outgoing.put(data)

    def __iter__(self) -> Iterator[bytes]:
        with contextlib.suppress(grpc.RpcError):
            for data in self._incoming:
                yield bytes(data)

    def close(self) -> None:
        self._outgoing.put(None)
        self._channel.close()


def another_enclave(target: str, program: str) -> Stream:
    """One of this man's own, on another server."""
    transport = RemoteProvision.instantiate(f"grpc://{target}").provision(Image.open(build_file(program)), "sim")
    return Stream(target, dict(transport._metadata)[SESSION_METADATA])


# -- tricks: what the client says and what the enclave says come in; what each is told goes out -------------------------------


class Pass:
    """Passes everything on, to the client's own enclave or to another."""

    def __init__(self, far: Stream, tell, note) -> None:
        self.far, self.tell, self.note = far, tell, note

    def from_client(self, data: bytes) -> None:
        self.far.say(data)

    def from_enclave(self, data: bytes) -> None:
        self.tell(data)


class Relay(Pass):
    """Ends the TLS of both, and passes on what they say inside of it: the nonce, the real evidence, and what follows."""

    def __init__(self, far: Stream, tell, note) -> None:
        super().__init__(far, tell, note)
        self.near_tls, self.far_tls = Tls.server(), Tls.client()
        self.for_enclave = b""
        far.say(self.far_tls.data_to_send())

    def from_client(self, data: bytes) -> None:
        self.for_enclave += self.read(self.near_tls, data)
        self.tell(self.near_tls.data_to_send())
        self.go_on()

    def from_enclave(self, data: bytes) -> None:
        plain = self.read(self.far_tls, data)
        self.go_on()
        self.near_tls.send(plain)
        self.tell(self.near_tls.data_to_send())

    def read(self, tls: Tls, data: bytes) -> bytes:
        plain = tls.receive(data)
        self.note(plain)
        return plain

    def go_on(self) -> None:
        if self.far_tls.finished:
            self.far_tls.send(self.for_enclave)
            self.for_enclave = b""
        self.far.say(self.far_tls.data_to_send())


class Impostor(Pass):
    """Ends the client's TLS, and answers it by itself."""

    def __init__(self, far: Stream, tell, note) -> None:
        super().__init__(far, tell, note)
        self.tls = Tls.server()

    def from_client(self, data: bytes) -> None:
        plain = self.tls.receive(data)
        self.note(plain)
        if plain:
            self.tls.send(self.answer(plain))
        self.tell(self.tls.data_to_send())

    def from_enclave(self, data: bytes) -> None:
        pass

    def answer(self, plain: bytes) -> bytes:
        raise NotImplementedError


class Replay(Impostor):
    """Shows evidence of the very same enclave, from an earlier connection."""

    def __init__(self, far: Stream, tell, note) -> None:
        super().__init__(far, tell, note)
        channel = ClientChannel()
        far.say(channel.data_to_send())
        for data in far:
            for event in channel.receive(data):
                if isinstance(event, EvidenceReceived):
                    self.evidence = event.evidence
                    return
            far.say(channel.data_to_send())

    def answer(self, plain: bytes) -> bytes:
        MessageReader().next(plain)
        return encode(Evidence(self.evidence))


class ReflectMessages(Impostor):
    """Returns what the client says inside its TLS."""

    def answer(self, plain: bytes) -> bytes:
        return plain


class ReflectAsEvidence(Impostor):
    """Shows the client's own request as evidence."""

    def answer(self, plain: bytes) -> bytes:
        return encode(Evidence(plain))


class ReflectBytes(Pass):
    """Returns the client's bytes as they are."""

    def from_client(self, data: bytes) -> None:
        self.tell(data)

    def from_enclave(self, data: bytes) -> None:
        pass


TRICKS = {  # and whether it needs an enclave of its own
    "record": (Pass, False),
    "relay": (Relay, False),
    "replay": (Replay, False),
    "reflect messages": (ReflectMessages, False),
    "reflect as evidence": (ReflectAsEvidence, False),
    "reflect bytes": (ReflectBytes, False),
    "relay another enclave's evidence": (Relay, True),
    "divert": (Pass, True),
}


class Middle(grpc.GenericRpcHandler):
    """Passes on every call as it is, but that which carries the channel."""

    def __init__(self, trick: str, target: str, other: str, program: str, record: str) -> None:
        self.make, self.elsewhere = TRICKS[trick]
        self.target, self.other, self.program = target, other, program
        self.channel = grpc.insecure_channel(target, ENDS)
        self.record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.lock = threading.Lock()

    def service(self, details: grpc.HandlerCallDetails):
        if details.method == METHOD:
            return grpc.stream_stream_rpc_method_handler(self.communicate, envelopes.unpack, envelopes.pack)
        method = details.method

        def splice(requests: Iterable[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            given = [each for each in context.invocation_metadata() if each[0].startswith("adyton")]
            for reply in self.channel.stream_stream(method)(map(self.note, requests), metadata=given):
                yield self.note(reply)

        return grpc.stream_stream_rpc_method_handler(splice)

    def note(self, data: bytes) -> bytes:
        with self.lock:
            os.write(self.record, data)
        return data

    def communicate(self, requests: Iterable[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.send_initial_metadata(())
        told: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        if self.elsewhere:
            far = another_enclave(self.other, self.program)
        else:
            far = Stream(self.target, dict(context.invocation_metadata())[SESSION_METADATA])
        trick = self.make(far, lambda data: told.put(bytes(data)) if data else None, self.note)
        lock = threading.Lock()

        def carry(incoming: Iterable[bytes], step) -> None:
            with contextlib.suppress(grpc.RpcError, RemoteProtocolError):
                for data in incoming:
                    self.note(bytes(data))
                    with lock:
                        step(bytes(data))
            told.put(None)

        for incoming, step in ((requests, trick.from_client), (far, trick.from_enclave)):
            threading.Thread(target=carry, args=(incoming, step), daemon=True).start()
        yield from iter(told.get, None)
        far.close()


def main() -> None:
    trick, listen, *rest = sys.argv[1:]
    server = grpc.server(ThreadPoolExecutor(16), [Middle(trick, *rest)], options=ENDS)
    host = listen.rpartition(":")[0]
    sys.stdout.write(f"{host}:{server.add_insecure_port(listen)}\n")
    sys.stdout.flush()
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    server.start()
    over.wait()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
