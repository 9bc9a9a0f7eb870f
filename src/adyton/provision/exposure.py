"""Who could reach a server, and whether it asks them who they are. Without grpc."""

from __future__ import annotations

from adyton.errors import UsageError
from adyton.remote.address import TLS, is_loopback


def check_exposure(host: str, tls: TLS | None, token: str, *, insecure: bool) -> None:
    """UsageError if anyone on the network could use a server at `host` (as it is written; "" for a unix socket is not).

    On a network a server needs TLS, and client certificates or a token, unless its owner says `insecure`.
    """
    if insecure or is_loopback(host):
        return
    certificate = tls is not None and tls.cert is not None
    authority = tls is not None and tls.ca is not None
    if certificate and (authority or token):
        return
    have, lack = "without TLS and client credentials", "--ssl_cert, --ssl_key and --client-ca or --token-file"
    if certificate:
        have, lack = "without client credentials", "--client-ca or --token-file"
    elif token:
        have, lack = "without TLS, to which the token would be sent in clear,", "--ssl_cert and --ssl_key"
    raise UsageError(
        f"serving {host or 'all addresses'} {have} would let anyone who reaches it run enclaves here: give {lack}, or say --insecure"
    )
