"""What whoever uploads an image, and shares a server with others, can do to its store, its threads and its users."""

import os
import queue
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from sandbox import children

from adyton.errors import AdytonError, ImageError, RemoteProtocolError, ResourceLimitError, UnreachableError
from adyton.image.build import build_file
from adyton.image.oci import Image
from adyton.provision import client as provision_client
from adyton.provision import service as provision_service
from adyton.provision.client import METHOD, RemoteProvision
from adyton.provision.service import ProvisionService
from adyton.provision.store import BlobStore
from adyton.provision.upload import Reception, chunks_of, offer_of
from adyton.provision_pb2 import Blob, Chunk, Missing, Offer, ProvisionRequest, ProvisionResponse, Ready
from adyton.remote.connection import open_server

PATIENCE = 60.0  # seconds until a test gives up on something that takes milliseconds


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "hello.py"
    path.write_text("def hello(name: str) -> str:\n    return 'Hello ' + name\n")
    return Image.open(build_file(str(path)))


@pytest.fixture
def store(tmp_path):
    return BlobStore(str(tmp_path / "store"))


def files(store):
    return sorted(
        os.path.relpath(os.path.join(above, name), store.directory)
        for above, _, names in os.walk(store.directory)
        for name in names
    )


def attempt(reception, chunks):
    try:
        for chunk in chunks:
            reception.receive(chunk)
        return reception.image()
    finally:
        reception.close()


TRICKS = [
    "",
    "sha256:",
    "sha256:../../../etc/passwd",
    "sha256:" + "g" * 64,
    "sha256:" + "A" * 64,
    "sha256:" + "a" * 64 + "\n",
    "/etc/passwd",
    "sha512:" + "a" * 128,
    "sha256:" + "a" * 63 + "/",
    "\0",
]


@pytest.mark.parametrize("digest", TRICKS, ids=repr)
def test_no_digest_leads_out_of_the_store(store, image, digest):
    for offer in (
        Offer(measurement=digest),
        Offer(manifest=image.oci_manifest, measurement=digest),
        Offer(manifest=image.oci_manifest, measurement=image.measurement, blobs=[Blob(digest=digest, size=1)]),
    ):
        with pytest.raises(AdytonError):
            attempt(Reception(store, offer), [Chunk(digest=digest, data=b"x", last=True)])
    assert files(store) == []


def test_only_the_blobs_that_the_manifest_names_are_taken(store, image):
    offer = offer_of(image, "auto")
    offer.blobs.append(Blob(digest="sha256:" + "a" * 64, size=1 << 40))
    with pytest.raises(ImageError):
        Reception(store, offer)
    for size in (0, 1, 1 << 62):
        offer = offer_of(image, "auto")
        offer.blobs[0].size = size
        with pytest.raises((ImageError, ResourceLimitError)):
            Reception(store, offer)
    assert files(store) == []


def test_an_upload_that_is_cut_or_changed_leaves_nothing_half_there(tmp_path, image):
    chunks = [each.chunk for each in chunks_of(image, image.blobs)]
    changed = [Chunk(digest=each.digest, offset=each.offset, data=b"x" + each.data[1:], last=True) for each in chunks]
    attempts = [chunks[:number] for number in range(len(chunks))]
    attempts += [
        changed,
        [Chunk(digest=chunks[0].digest, offset=5, data=b"x")],
        [Chunk(digest=chunks[0].digest, data=chunks[0].data + b"x", last=True)],
        [Chunk(digest=chunks[0].digest, data=chunks[0].data[:-1], last=True)],
        [chunks[0], chunks[0]],
        [chunks[-1]],
    ]
    for number, each in enumerate(attempts):
        store = BlobStore(str(tmp_path / str(number)))
        with pytest.raises((ImageError, RemoteProtocolError)):
            attempt(Reception(store, offer_of(image, "auto")), each)
        assert [name for name in files(store) if not name.startswith("blobs/")] == []
        for name in files(store):
            store.read("sha256:" + os.path.basename(name))
        with pytest.raises(ImageError):
            store.read(image.measurement)


def test_one_blob_uploaded_by_several_at_once_is_whole(store, image):
    barrier = threading.Barrier(4)

    def upload(_):
        reception = Reception(store, offer_of(image, "auto"))
        barrier.wait(PATIENCE)
        return attempt(reception, [each.chunk for each in chunks_of(image, reception.missing)]).measurement

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(upload, range(4))) == {image.measurement}
    assert [name for name in files(store) if not name.startswith("blobs/")] == []


@pytest.fixture
def serving(store, monkeypatch):
    """A provision service on a port of its own; the orders that it was given."""
    monkeypatch.setattr(provision_service, "UPLOAD_PATIENCE", PATIENCE)
    monkeypatch.setattr(provision_service, "OFFER_PATIENCE", PATIENCE)
    orders = []

    def start(order):
        orders.append(order)
        return Ready(enclave_id="0", port=1, session=b"x" * 32)

    server, port = open_server([ProvisionService(store, start).handler()], "127.0.0.1:0", None, 2)
    server.start()
    yield f"127.0.0.1:{port}", orders
    server.stop(None).wait(PATIENCE)


def speak(target, requests):
    """What the server answers to these requests; what is None is waited for, and never comes."""
    waiting = queue.SimpleQueue()

    def outgoing():
        for request in requests:
            if request is None:
                waiting.get()
                return
            yield request

    with grpc.insecure_channel(target) as channel:
        stub = channel.stream_stream(
            METHOD,
            request_serializer=ProvisionRequest.SerializeToString,
            response_deserializer=ProvisionResponse.FromString,
        )
        call = stub(outgoing(), timeout=PATIENCE)
        try:
            return list(call)
        finally:
            waiting.put(None)


def test_uploads_that_hang_do_not_keep_the_servers_threads(serving, image, monkeypatch):
    target, orders = serving
    offer = ProvisionRequest(offer=offer_of(image, "auto"))
    first = next(iter(chunks_of(image, image.blobs)))
    part = ProvisionRequest(chunk=Chunk(digest=first.chunk.digest, data=first.chunk.data[:1]))
    with monkeypatch.context() as impatient:
        impatient.setattr(provision_service, "UPLOAD_PATIENCE", 0.3)
        impatient.setattr(provision_service, "OFFER_PATIENCE", 0.3)
        for requests in ([None], [offer, None], [offer, part, None], [None], [None]):
            with pytest.raises(grpc.RpcError) as caught:
                speak(target, requests)
            assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert not orders
    answers = speak(target, [offer, *chunks_of(image, image.blobs)])
    assert answers[-1].WhichOneof("step") == "ready"
    assert len(orders) == 1


@pytest.mark.parametrize("wrong", ["none", "changed", "twice", "garbage"])
def test_nothing_is_started_for_an_upload_that_is_wrong(serving, image, wrong):
    target, orders = serving
    offer = ProvisionRequest(offer=offer_of(image, "auto"))
    chunks = list(chunks_of(image, image.blobs))
    if wrong == "changed":
        chunks[-1].chunk.data = b"x" + chunks[-1].chunk.data[1:]
    elif wrong == "garbage":
        offer.offer.manifest = b"x" * len(offer.offer.manifest)
    requests = {"none": [offer], "twice": [offer, offer]}.get(wrong, [offer, *chunks])
    with pytest.raises(grpc.RpcError):
        speak(target, requests)
    assert not orders


def test_chunks_with_nothing_in_them_are_refused(serving, image):
    target, _ = serving
    offer = ProvisionRequest(offer=offer_of(image, "auto"))
    empty = ProvisionRequest(chunk=Chunk(digest=next(iter(image.blobs))))
    with pytest.raises(grpc.RpcError) as caught:
        speak(target, [offer, *[empty] * 100])
    assert caught.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    "answers", [[], ["missing"] * 2, ["missing", None], [None], ["nothing"], ["foreign"]], ids=repr
)
def test_a_provision_server_that_hangs_or_talks_nonsense_is_an_error_in_seconds(image, monkeypatch, answers):
    monkeypatch.setattr(provision_client, "ANSWER_TIMEOUT", 0.3)
    over = threading.Event()
    kinds = {
        "missing": ProvisionResponse(missing=Missing(digests=list(image.blobs))),
        "foreign": ProvisionResponse(missing=Missing(digests=["sha256:" + "a" * 64])),
        "nothing": ProvisionResponse(),
    }

    def provision(_requests, _context):
        for answer in answers:
            if answer is None:
                over.wait(PATIENCE)
                return
            yield kinds[answer]

    handler = grpc.stream_stream_rpc_method_handler(
        provision,
        request_deserializer=ProvisionRequest.FromString,
        response_serializer=ProvisionResponse.SerializeToString,
    )
    server, port = open_server(
        [grpc.method_handlers_generic_handler("adyton.ProvisionService", {"Provision": handler})],
        "127.0.0.1:0",
        None,
        2,
    )
    server.start()
    try:
        with pytest.raises((RemoteProtocolError, UnreachableError, ImageError)):
            RemoteProvision.instantiate(f"grpc://127.0.0.1:{port}").provision(image, "auto")
    finally:
        over.set()
        server.stop(None).wait(PATIENCE)


@pytest.mark.sandbox
def test_no_secret_shows_to_other_users_of_the_machine(image):
    """Of a local load: the socket and its folder are their owner's, no command line holds a secret, and no environment but the proxy server's."""
    provision = RemoteProvision.instantiate(remote_proxy=None)
    transport = provision.provision(image, "auto")
    try:
        session = dict(transport._metadata)["adyton-session-bin"]
        directory = provision._proxy._directory
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(os.path.join(directory, "proxy.sock")).st_mode) & 0o077 == 0
        proxy = provision._proxy._process.pid
        secret = Path(f"/proc/{proxy}/environ").read_bytes().split(b"ADYTON_LAUNCH_SECRET=")[1].split(b"\0")[0]
        started = children(proxy)
        assert started
        for pid in {proxy, *started}:
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                assert pid != proxy
                continue  # it ended meanwhile
            except PermissionError:  # a supervisor shows itself not even to its own user
                assert pid != proxy
                environment = b""
            assert secret not in line
            assert session.hex().encode() not in line + environment
            assert (secret in environment) == (pid == proxy)
    finally:
        transport.close()
        provision.finalize()
