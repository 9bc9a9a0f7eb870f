"""A client in an enclave: it asks one other enclave, and nobody else."""

from __future__ import annotations

import grpc
from parties import SERVER, SERVICE, of_product
from words_pb2 import GetTranslationRequest, GetTranslationResponse

from adyton import trusted

enclave = trusted.Enclave("client")


@enclave.entry
def ask(address: str, word: str) -> str:
    """The server at `address` for a translation; AttestationError before a word is sent, if it is another."""
    with (
        trusted.channel.dial(address, expect=of_product(SERVER)) as door,
        grpc.insecure_channel(door.target) as channel,
    ):
        call = channel.unary_unary(
            f"/{SERVICE}/GetTranslation",
            request_serializer=GetTranslationRequest.SerializeToString,
            response_deserializer=GetTranslationResponse.FromString,
        )
        answer: GetTranslationResponse = call(GetTranslationRequest(input_word=word), timeout=60)
        return answer.translated_word
