"""An enclave and a client that keeps no rule of its own: for tests that attack the one from the place of the other."""

import time
from contextlib import contextmanager, suppress

import msgspec

from adyton.attestation.verify import verify
from adyton.channel.client import ClientChannel, Data, EvidenceReceived
from adyton.communicator import session as communicator
from adyton.communicator.joining import AnswerReader, Hello, new_secret
from adyton.communicator.messages import ORDER, EnterRequest, LoadRequest, Mount, Raised, decode, encode
from adyton.handing_over import connect
from adyton.hostcall import abi
from adyton.hostcall import sockets as net
from adyton.image.build import build_file
from adyton.image.oci import Image
from adyton.proto.values import decode_result, encode_arguments
from adyton.provision.store import BlobStore
from adyton.runtime.launch import LaunchRequest, Zygote

PATIENCE = 60.0  # seconds until a test gives up on something that takes milliseconds
STRICT = [Mount("/", "strict")]  # each host call of the program's goes to the client, one by one
EMPTY = LoadRequest(b"", [], working_directory="/nowhere", time_zone="", environment={}, coherence=STRICT)

# A program that does what its client says.
PROGRAM = '''
import ctypes, errno, json, os, signal, socket, sys, threading, time

def execute(code: str) -> object:
    scope = dict(globals())
    exec(code, scope)
    return scope.get("result")

def attempt(code: str) -> str:
    """What an expression gives, or the name of its error."""
    try:
        return repr(eval(code))
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
'''


class Client:
    """A client's end of an attached enclave, single-threaded, that can say whatever it likes whenever it likes.

    `answer(request)` gives the result of a host call: a Struct, bytes that are sent as they are, or None: its number is in `unanswered`.
    """

    def __init__(self, control, answer=lambda _request: abi.Failed("EACCES"), secret=None, read=0, credential=None):
        """`secret`, `read`: of its Hello; None: of a new session. `credential`: what it shows in the handshake."""
        self.secret = secret or new_secret()
        self.control = control  # whose end is the enclave's
        self.socket = connect(control)
        self.socket.settimeout(PATIENCE)
        self.joining = AnswerReader()
        self.joined = None
        self.channel = ClientChannel(credential=credential)
        self.session = communicator.Session(communicator.Side.CLIENT)
        self.answer = answer
        self.replies = {}
        self.output = bytearray()
        self.asked = []
        self.unanswered = []
        self.told = []  # messages about sockets
        self.ended = None
        self.evidence = None
        self.pump(lambda: self.evidence is not None)
        verify(self.evidence)
        self.channel.accept()
        self.channel.send(Hello(self.secret, read).pack())

    def send(self):
        """Whatever is due."""
        if self.channel.established:
            while plaintext := self.session.data_to_send():
                self.channel.send(plaintext)
        if data := self.channel.data_to_send():
            self.socket.sendall(data)

    def send_raw(self, plaintext):
        """Bytes in place of the session's."""
        self.channel.send(plaintext)
        self.send()

    def receive(self, seconds=PATIENCE):
        """One piece of what arrives. False: the enclave closed the connection."""
        with suppress(ConnectionError):  # what it said before it closed is still to be read
            self.send()
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionError:
            data = b""
        if not data:
            return False
        for event in self.channel.receive(data):
            match event:
                case EvidenceReceived(evidence):
                    self.evidence = evidence
                case Data(plaintext):
                    if self.joined is None:
                        self.joined, plaintext = self.joining.receive(plaintext)
                    for inner in self.session.receive(plaintext):
                        self._take(inner)
        with suppress(ConnectionError):
            self.send()
        return True

    def _take(self, event):
        match event:
            case communicator.Called(call, _, "host" | "function" | "order" as method, body):
                request = msgspec.msgpack.decode(body[ORDER.size if method == "order" else 0 :], type=abi.Request)
                self.asked.append(request)
                answer = self.answer(request)
                if isinstance(answer, bytes):
                    self.session.reply(call, True, answer)
                elif answer is not None:
                    self.session.reply(call, True, msgspec.msgpack.encode(answer))
                else:
                    self.unanswered.append(call)
            case communicator.Called(call, _, "net", body):
                request = net.request_of(body)
                self.asked.append(request)
                answer = self.answer(request)
                if answer is not None:
                    self.session.reply(call, True, answer if isinstance(answer, bytes) else net.encode(answer))
            case communicator.Notified("net", body):
                self.told.append(net.from_enclave(body))
            case communicator.Replied():
                self.replies[event.call] = event
            case communicator.Notified("output", body):
                self.output += msgspec.msgpack.decode(body, type=abi.Output).data
            case communicator.Notified("ended", body):
                self.ended = body.decode()

    def pump(self, done):
        """Receive until that holds."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError("the enclave does not answer")
            if not self.receive():
                raise ConnectionResetError(self.ended or "the enclave closed the connection")

    def tell(self, message):
        """A message about a socket: a Struct, or bytes."""
        self.session.notify("net", message if isinstance(message, bytes) else net.encode(message))
        self.send()

    def call(self, method, body, pair=1):
        """Make a call; its number."""
        number = self.session.call(pair, method, body)
        self.send()
        return number

    def result(self, number):
        """The Replied of that call."""
        self.pump(lambda: number in self.replies)
        return self.replies.pop(number)

    def load(self, request=EMPTY, pair=1):
        return self.result(self.call("load", request if isinstance(request, bytes) else encode(request), pair))

    def enter(self, entry, *arguments, pair=1):
        """Call an entry; what it returns, or its Raised."""
        return self.entered(self.start(entry, *arguments, pair=pair))

    def start(self, entry, *arguments, pair=1):
        return self.call("enter", encode(EnterRequest(entry, encode_arguments(entry, arguments, {}))), pair)

    def entered(self, number):
        replied = self.result(number)
        if not replied.ok:
            return decode(replied.body, Raised)
        return decode_result("it", replied.body)

    def wait_for_end(self):
        """Until the enclave closes the connection; the reason it gave."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if not self.receive(PATIENCE):
                return self.ended
        raise TimeoutError("the enclave goes on")

    def close(self):
        self.socket.close()
        self.control.close()


class Ward:
    """A zygote over a store with one image."""

    def __init__(self, directory, program=PROGRAM):
        self.directory = directory
        store = BlobStore(str(directory / "store"))
        path = directory / "program.py"
        path.write_text(program)
        image = Image.open(build_file(str(path)))
        store.add(image.oci_manifest)
        for blob in image.blobs.values():
            store.add(blob.read())
        signatures = [store.add(each.envelope) for each in image.signatures]
        self.request = LaunchRequest(image.measurement, signatures, grace=0.0)
        self.zygote = Zygote.start(store.directory)

    @contextmanager
    def enclave(self, answer=lambda _request: abi.Failed("EACCES")):
        with self.zygote.launch(self.request) as enclave:
            client = Client(enclave.socket, answer)
            client.enclave = enclave
            with client.socket:
                yield client

    def close(self):
        self.zygote.close()
