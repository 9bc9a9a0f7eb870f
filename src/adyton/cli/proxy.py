"""adyton proxy: a proxy server for one enclave."""

from __future__ import annotations

import os

import click

from adyton.cli.command import Command
from adyton.cli.options import json_option, option, server_options, server_tls
from adyton.errors import UsageError


@click.command(cls=Command, short_help="A proxy server for one enclave.")
@option(
    "--listen",
    default="127.0.0.1:0",
    show_default=True,
    metavar="HOST:PORT|unix:PATH",
    help="Where to wait for the client.",
)
@option("--host-address", metavar="HOST:PORT", help="Dial back to the client there (not in this version).")
@server_options
@json_option()
def command(
    listen: str,
    host_address: str | None,
    ssl_cert: str | None,
    ssl_key: str | None,
    client_ca: str | None,
    token_file: str | None,
    security_type: str | None,
    insecure: bool,
    as_json: bool,  # noqa: ARG001 - root's
) -> None:
    """adyton proxy --listen 127.0.0.1:4322

    Wait for one client, load the image that it brings into an enclave here, and relay between the two until either ends.
    """
    from adyton.provision.client import DIRECTORY_VARIABLE, PARENT_VARIABLE, SECRET_VARIABLE
    from adyton.provision.exposure import check_exposure
    from adyton.provision.proxy import Launched, serve_alone
    from adyton.remote.bearer import read_token
    from adyton.remote.certificates import of_server

    if host_address is not None:
        raise UsageError(
            "--host_address (dialling back to the client) is not supported yet: use --listen, and let the client dial"
        )
    if listen == "unix:":
        raise UsageError("--listen unix: needs a path, such as unix:/run/adyton.sock")
    host, _, port = listen.rpartition(":")
    if not listen.startswith("unix:") and not (host and port.isdigit() and len(port) < 6 and int(port) < 65536):
        raise UsageError(f"--listen {listen}: write HOST:PORT (port 0 takes a free one) or unix:PATH")
    secret = os.environ.pop(SECRET_VARIABLE, "")
    parent = os.environ.pop(PARENT_VARIABLE, "")
    directory = os.environ.pop(DIRECTORY_VARIABLE, "")
    token = secret or read_token(token_file)
    tls = server_tls(ssl_cert, ssl_key, client_ca, security_type)
    if not listen.startswith("unix:"):
        check_exposure(listen.rpartition(":")[0], tls, token, insecure=insecure)
    elif tls is not None:
        raise UsageError(f"--listen {listen}: a unix socket is served without TLS; leave its files out")
    of_server(tls)  # what is wrong with its files is said before anything is started
    launched = Launched(int(parent), directory) if parent and directory else None
    if launched is not None:
        os.set_inheritable(launched.parent, False)

    def announce(address: str) -> None:
        click.echo(f"adyton proxy listening on {address}")

    serve_alone(listen, tls, token, launched, announce)
