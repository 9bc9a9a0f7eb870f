"""adyton attest: evidence of an enclave that runs on a server."""

from __future__ import annotations

import click

from adyton.cli.command import Command
from adyton.cli.options import json_option, option
from adyton.cli.values import PATH, SECONDS

EVIDENCE_SECONDS = 60.0


@click.command(cls=Command, short_help="Evidence of an enclave that runs on a server.")
@click.argument("enclave", metavar="ID")
@option("--on", metavar="URL", help="The server: grpc://H[:4321], grpcs://H[:4321], unix:PATH.")
@option("--output", "-o", type=PATH, metavar="FILE", help="Where to write it. Default: standard output.")
@option("--timeout", type=SECONDS, metavar="S", help="Seconds that it may take. Default: 60.")
@option("--ca", metavar="FILE", help="Check the server's certificate by this CA. Default: the public ones.")
@option("--cert", metavar="FILE", help="Our certificate (PEM), for a server that asks for one.")
@option("--key", metavar="FILE", help="Its key (PEM, not encrypted).")
@option("--token-file", metavar="FILE", help="A file with the token that the server wants.")
@json_option()
def command(
    enclave: str,
    on: str | None,
    output: str | None,
    timeout: float | None,
    ca: str | None,
    cert: str | None,
    key: str | None,
    token_file: str | None,
    as_json: bool,  # noqa: ARG001 - root's
) -> None:
    """adyton attest 0011223344556677 --on grpcs://tee.example -o evidence.json

    Ask the enclave ID (EnclaveClient.enclave_id; `adyton call -v` says it) of a server for evidence over a nonce that was never used, and write it with all
    that it is bound to. Its program and its client notice nothing. `adyton verify` says what the evidence is worth.
    """
    from adyton.errors import UsageError
    from adyton.provision.client import RemoteProvision
    from adyton.remote.address import TLS
    from adyton.remote.bearer import read_token
    from adyton.remote.evidence_query import evidence_of

    if not on:
        raise UsageError("--on is missing: which server runs the enclave?")
    tls = TLS(ca=ca, cert=cert, key=key)
    provision = RemoteProvision.instantiate(on, tls=None if tls == TLS() else tls, token=read_token(token_file) or None)
    seconds = EVIDENCE_SECONDS if timeout is None else timeout
    evidence = evidence_of(provision.find(enclave, seconds), seconds)
    if output is None:
        click.echo(evidence)
        return
    try:
        with open(output, "wb") as file:
            file.write(evidence + b"\n")
    except OSError as error:
        raise UsageError(f"-o {output}: it cannot be written there ({error.strerror})") from error
