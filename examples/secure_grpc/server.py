"""A gRPC server in an enclave that only one other enclave can call. grpc itself listens inside the enclave, behind a door."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from parties import CLIENT, SERVICE, of_product
from words_pb2 import GetTranslationRequest, GetTranslationResponse

from adyton import trusted

GRACE = 0.5  # seconds for calls under way when the enclave is destroyed
LOCAL = "unix-abstract:translator"  # in the enclave, where nobody else can connect
WORDS = {"asylo": "sanctuary", "istio": "sail", "kubernetes": "helmsman"}

enclave = trusted.Enclave("server")
running: list[tuple[grpc.Server, Any]] = []


def translate(request: GetTranslationRequest, context: grpc.ServicerContext) -> GetTranslationResponse:
    """GetTranslation."""
    _, door = running[0]
    caller = door.peer(context.peer())
    print(f"server: asked by product {caller.product_id}")
    word = WORDS.get(request.input_word.lower())
    if word is None:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f'No known translation for "{request.input_word}"')
    return GetTranslationResponse(translated_word=word)


@enclave.entry
def start(address: str) -> int:
    """Serve at `address`, HOST:PORT on the client's machine; the port got."""
    if running:
        raise RuntimeError("the server has started already")
    handler = grpc.unary_unary_rpc_method_handler(
        translate,
        request_deserializer=GetTranslationRequest.FromString,
        response_serializer=GetTranslationResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"GetTranslation": handler})])
    server.add_insecure_port(LOCAL)
    server.start()
    door = trusted.channel.serve(address, to=LOCAL, expect=of_product(CLIENT))
    running.append((server, door))
    return int(door.address[1])


@enclave.on_finalize
def stop(final: trusted.EnclaveFinal) -> None:  # noqa: ARG001
    """Of each that runs."""
    for server, door in running:
        server.stop(GRACE).wait()
        door.close()
