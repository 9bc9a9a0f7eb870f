"""adyton proxy: a proxy server for one enclave."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from adyton.cli.command import Command
from adyton.cli.options import grace_option, json_option, option, sealed_directory_option, server_options, server_tls
from adyton.errors import UsageError

if TYPE_CHECKING:
    from adyton.remote.address import TLS, Address


@click.command(cls=Command, short_help="A proxy server for one enclave.")
@option(
    "--listen",
    metavar="HOST:PORT|unix:PATH",
    help="Where to wait for the client. Default: 127.0.0.1:0.",
)
@option(
    "--host-address",
    metavar="HOST:PORT|unix:PATH",
    help="Instead, dial back to a client that waits there (dial_back). It must know the token of --token-file. Its certificate is checked by "
    "--client-ca, which only loopback addresses and unix sockets can do without; --ssl_cert and --ssl_key are shown to it.",
)
@sealed_directory_option()
@grace_option()
@server_options
@json_option()
@click.pass_context
def command(
    context: click.Context,
    listen: str | None,
    host_address: str | None,
    sealed_directory: str | None,
    grace: float,
    ssl_cert: str | None,
    ssl_key: str | None,
    client_ca: str | None,
    token_file: str | None,
    security_type: str | None,
    insecure: bool,
    as_json: bool,  # noqa: ARG001 - root's
) -> None:
    """adyton proxy --listen 127.0.0.1:4322

    Wait for one client, or dial one that waits; load the image that it brings into an enclave here, and relay between the two until
    either ends.
    """
    from adyton.provision.exposure import check_exposure
    from adyton.provision.first_line import CONNECTED, LISTENING
    from adyton.provision.local_proxy import (
        CERTIFICATE_VARIABLE,
        DIRECTORY_VARIABLE,
        PARENT_VARIABLE,
        SECRET_VARIABLE,
    )
    from adyton.provision.proxy import Client, Launched, dial_alone, serve_alone
    from adyton.provision.relay_processes import RELAY_VARIABLE
    from adyton.remote import event_engine
    from adyton.remote.bearer import read_token
    from adyton.remote.certificates import of_server
    from adyton.remote.dial_address import host_address as parsed

    if relay := os.environ.pop(RELAY_VARIABLE, ""):
        from adyton.provision.relay_process import main

        main(shlex.split(relay))
        return
    if host_address is not None and listen is not None:
        typed = [
            context.get_parameter_source(each) is ParameterSource.COMMANDLINE for each in ("listen", "host_address")
        ]
        if typed[0] == typed[1]:
            raise UsageError("--listen waits for the client, --host_address dials it: give one of the two")
        listen, host_address = (listen, None) if typed[0] else (None, host_address)
    event_engine.keep_off()
    secret = os.environ.pop(SECRET_VARIABLE, "")
    parent = os.environ.pop(PARENT_VARIABLE, "")
    directory = os.environ.pop(DIRECTORY_VARIABLE, "")
    certificate = os.environ.pop(CERTIFICATE_VARIABLE, None)
    launched = Launched(int(parent), directory) if parent and directory else None
    if host_address is not None:
        address = parsed(host_address)
        if secret and certificate is not None:
            client = Client(address, secret, certificate.encode())
        else:
            client = Client(*_by_hand(address, ssl_cert, ssl_key, client_ca, token_file, security_type))
    if launched is not None:
        os.set_inheritable(launched.parent, False)
    if host_address is not None:
        dial_alone(client, launched, lambda address: click.echo(CONNECTED + address), grace, sealed_directory)
        return
    listen = listen or "127.0.0.1:0"
    if listen == "unix:":
        raise UsageError("--listen unix: needs a path, such as unix:/run/adyton.sock")
    host, _, port = listen.rpartition(":")
    if not listen.startswith("unix:") and not (host and port.isdigit() and len(port) < 6 and int(port) < 65536):
        raise UsageError(f"--listen {listen}: write HOST:PORT (port 0 takes a free one) or unix:PATH")
    token = secret or read_token(token_file)
    tls = server_tls(ssl_cert, ssl_key, client_ca, security_type)
    if not listen.startswith("unix:"):
        check_exposure(listen.rpartition(":")[0], tls, token, insecure=insecure)
    elif tls is not None:
        raise UsageError(f"--listen {listen}: a unix socket is served without TLS; leave its files out")
    of_server(tls)  # what is wrong with its files is said before anything is started
    serve_alone(listen, tls, token, launched, lambda address: click.echo(LISTENING + address), grace, sealed_directory)


def _by_hand(
    address: Address,
    cert: str | None,
    key: str | None,
    client_ca: str | None,
    token_file: str | None,
    security_type: str | None,
) -> tuple[Address, str, None, TLS | None]:
    """The arguments of a Client that waits for a proxy server started by hand; UsageError."""
    from adyton.remote.address import TLS, is_loopback
    from adyton.remote.bearer import read_token

    token = read_token(token_file)
    if not token:
        raise UsageError(
            "--host_address needs --token-file: a secret that the client knows too, since it serves only the proxy server that shows it"
        )
    unix = not address.host
    if client_ca is None or unix or security_type == "local":
        if cert or key or client_ca:
            raise UsageError(
                f"--host_address {address.target}: TLS needs --client-ca, and is for neither unix:PATH nor --security_type local"
            )
        if security_type == "ssl" or not (unix or is_loopback(address.host)):
            raise UsageError(
                f"--host_address {address.target} needs --client-ca, the CA of the certificate that the client shows there: "
                "without it anyone could be given the token"
            )
        return address, token, None, None
    if (cert is None) != (key is None):
        raise UsageError("TLS needs both --ssl_cert and --ssl_key")
    return replace(address, secure=True), token, None, TLS(ca=client_ca, cert=cert, key=key)
