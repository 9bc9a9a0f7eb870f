"""A gRPC server in an enclave. It listens on its client's port, and translates words that only it knows.

initialize starts nothing yet; `start` says where to listen and returns the port; finalize stops the server within half a second.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from translator_pb2 import GetTranslationRequest, GetTranslationResponse

from adyton import trusted

SERVICE = "examples.grpc_server.Translator"
GRACE = 0.5  # seconds for calls under way when the enclave is destroyed
WORDS = {"asylo": "sanctuary", "istio": "sail", "kubernetes": "helmsman"}


def translate(request: GetTranslationRequest, context: grpc.ServicerContext) -> GetTranslationResponse:
    """GetTranslation."""
    if not request.HasField("input_word"):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "No input word given")
    word = WORDS.get(request.input_word.lower())
    if word is None:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f'No known translation for "{request.input_word}"')
    return GetTranslationResponse(translated_word=word)


class Translator(trusted.TrustedApplication):
    """The enclave: one server."""

    def initialize(self, config: trusted.EnclaveConfig) -> None:
        self._server: grpc.Server | None = None

    @trusted.entry
    def start(self, address: str) -> int:
        """Serve at `address`, HOST:PORT on the client's machine; the port got."""
        if self._server is not None:
            raise RuntimeError("the server has started already")
        handler = grpc.unary_unary_rpc_method_handler(
            translate,
            request_deserializer=GetTranslationRequest.FromString,
            response_serializer=GetTranslationResponse.SerializeToString,
        )
        server = grpc.server(ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"GetTranslation": handler})])
        port = server.add_insecure_port(address)
        server.start()
        self._server = server
        return int(port)

    def finalize(self, final: Any) -> None:
        if self._server is not None:
            self._server.stop(GRACE).wait()
