"""Fuzz targets: one for every parser of bytes from another party. TARGETS is the whole truth about which there are.

A target takes any bytes. Only the errors of its row may leave it; they are what the parser documents. Asserts in a target are what the
parser promises beyond that. The first byte mostly chooses between raw bytes and nearly valid input (see `draw`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from google.protobuf.message import DecodeError
from target_attestation import (
    any_evidence,
    certificate,
    collateral,
    dcap_quote,
    nitro_document,
    snp_report,
)
from target_broker import broker_log, broker_message, guest_question
from target_client_files import host_call
from target_enclave_files import file_server, host_call_result
from target_images import image_file, image_parts, layer, manifest, signature, upload
from target_platforms import host_certificates
from target_policy import policy
from target_proofs import guest_proof
from target_remote import dial_back, proc_file, process_report, server_certificate, server_error
from target_sealed import sealed_store
from target_sealing import key_question, seal_requests, sealed_data
from target_sessions import (
    caller,
    client_channel,
    evidence,
    guest_link,
    joining,
    message,
    server_channel,
    session,
    stream,
)
from target_sockets import datagram_message, name_query, socket_message, socket_result, stand_ins
from target_tpm import tpm_answer, tpm_event_log, tpm_public, tpm_quote, tpm_report, tpm_signature
from target_tracing import told_spans, trace_contexts
from target_values import value

from adyton.communicator.session import Side
from adyton.errors import (
    AttestationError,
    EnclaveTypeError,
    EvidenceMalformedError,
    ImageError,
    IntegrityError,
    PlatformError,
    RemoteProtocolError,
    ResourceLimitError,
    SignatureError,
    UsageError,
)
from adyton.sealed_files.storage import StorageError


class Target(NamedTuple):
    """`run` takes any bytes; `raises` may leave it, and nothing else."""

    run: Callable[[bytes], None]
    raises: tuple[type[Exception], ...] = ()

    def __call__(self, data: bytes) -> None:
        with contextlib.suppress(*self.raises):
            self.run(data)


TARGETS: Mapping[str, Target] = {
    "client-session": Target(functools.partial(session, Side.CLIENT), (RemoteProtocolError, ResourceLimitError)),
    "enclave-session": Target(functools.partial(session, Side.ENCLAVE), (RemoteProtocolError, ResourceLimitError)),
    "joining": Target(joining, (RemoteProtocolError,)),
    "stream": Target(stream, (RemoteProtocolError,)),
    "message": Target(message, (RemoteProtocolError, UsageError)),
    "client-channel": Target(client_channel, (RemoteProtocolError,)),
    "server-channel": Target(server_channel, (RemoteProtocolError,)),
    "caller": Target(caller, (RemoteProtocolError,)),
    "evidence": Target(evidence, (AttestationError,)),
    "tpm-quote": Target(tpm_quote, (AttestationError,)),
    "tpm-signature": Target(tpm_signature, (AttestationError,)),
    "tpm-public": Target(tpm_public, (EvidenceMalformedError,)),
    "tpm-event-log": Target(tpm_event_log, (EvidenceMalformedError,)),
    "tpm-report": Target(tpm_report, (AttestationError,)),
    "tpm-answer": Target(tpm_answer, (PlatformError,)),
    "host-certificates": Target(host_certificates, (EvidenceMalformedError,)),
    "guest-link": Target(guest_link, (RemoteProtocolError,)),
    "sealed-data": Target(sealed_data, (IntegrityError,)),
    "key-question": Target(key_question, (IntegrityError,)),
    "seal-requests": Target(seal_requests, (RemoteProtocolError,)),
    "file-server": Target(file_server),
    "host-call-result": Target(host_call_result),
    "host-call": Target(host_call),
    "image-file": Target(image_file, (ImageError,)),
    "image-parts": Target(image_parts, (ImageError,)),
    "layer": Target(layer, (ImageError,)),
    "signature": Target(signature, (SignatureError,)),
    "manifest": Target(manifest, (ImageError,)),
    "upload": Target(upload, (ImageError, RemoteProtocolError, ResourceLimitError, DecodeError)),
    "policy": Target(policy, (UsageError,)),
    "value": Target(value, (EnclaveTypeError,)),
    "server-error": Target(server_error),
    "dial-back": Target(dial_back, (UsageError,)),
    "proc-file": Target(proc_file, (ValueError,)),
    "process-report": Target(process_report, (RemoteProtocolError,)),
    "server-certificate": Target(server_certificate),
    "socket-result": Target(socket_result),
    "socket-message": Target(socket_message, (RemoteProtocolError,)),
    "name-query": Target(name_query),
    "datagram-message": Target(datagram_message),
    "stand-ins": Target(stand_ins),
    "trace-contexts": Target(trace_contexts, (RemoteProtocolError,)),
    "sealed-store": Target(sealed_store, (IntegrityError, StorageError)),
    "broker-log": Target(broker_log),
    "broker-message": Target(broker_message, (RemoteProtocolError,)),
    "guest-question": Target(guest_question, (RemoteProtocolError,)),
    "guest-proof": Target(guest_proof, (RemoteProtocolError,)),
    "told-spans": Target(told_spans, (RemoteProtocolError,)),
    "dcap-quote": Target(dcap_quote, (AttestationError,)),
    "snp-report": Target(snp_report, (AttestationError,)),
    "nitro-document": Target(nitro_document, (AttestationError,)),
    "certificate": Target(certificate, (AttestationError,)),
    "collateral": Target(collateral),
    "any-evidence": Target(any_evidence, (AttestationError,)),
}
