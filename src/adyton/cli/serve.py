"""adyton serve: a provision server."""

from __future__ import annotations

import shlex
import shutil

import click

from adyton.cli.command import Command
from adyton.cli.options import (
    PLATFORM_NAMES,
    grace_option,
    json_option,
    option,
    sealed_directory_option,
    server_options,
    server_tls,
)
from adyton.cli.values import PORT, OneOf
from adyton.errors import UsageError


def _ports(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    low, _, high = text.partition("-")
    if not (low.isdigit() and high.isdigit() and 0 < int(low) <= int(high) < 65536):
        raise UsageError(f"--proxy-ports {text}: write LOW-HIGH, such as 5000-5099")
    return int(low), int(high)


def _command(text: str) -> str:
    """The command as it is; UsageError if it cannot be started."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--remote_proxy {text}: {error}") from None
    if words and shutil.which(words[0]) is None:
        raise UsageError(f"--remote_proxy {text}: there is no program {words[0]}")
    return text


@click.command(cls=Command, short_help="A provision server.")
@option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@option("--port", type=PORT, default=4321, show_default=True, help="0 takes a free one.")
@option("--platform", type=OneOf(PLATFORM_NAMES), default="auto", help="What proves where enclaves run here.")
@option("--proxy-ports", metavar="LOW-HIGH", help="Ports of the enclaves' proxy servers. Default: any free one.")
@sealed_directory_option()
@option("--temporary-directory", metavar="DIR", help="Where images are kept. Default: a new one, removed at the end.")
@option(
    "--remote-proxy",
    default="",
    metavar="COMMAND",
    help="What is started for each enclave: a command that ends up in `adyton proxy`, such as `nice adyton proxy`.",
)
@grace_option()
@server_options
@json_option()
def command(
    host: str,
    port: int,
    platform: str,
    proxy_ports: str | None,
    sealed_directory: str | None,
    temporary_directory: str | None,
    remote_proxy: str,
    grace: float,
    ssl_cert: str | None,
    ssl_key: str | None,
    client_ca: str | None,
    token_file: str | None,
    security_type: str | None,
    insecure: bool,
    as_json: bool,  # noqa: ARG001 - root's
) -> None:
    """adyton serve --port 4321

    Take images from clients, and start an enclave with a proxy server for each load. SIGTERM drains.
    """
    from adyton.attestation.attesters import chosen
    from adyton.provision.server import ServerOptions, serve
    from adyton.remote.bearer import read_token

    tls = server_tls(ssl_cert, ssl_key, client_ca, security_type)

    def announce(address: str) -> None:
        click.echo(f"adyton provision server listening on {address}")

    serve(
        ServerOptions(
            host=host,
            port=port,
            proxy_ports=_ports(proxy_ports),
            temporary_directory=temporary_directory,
            sealed_directory=sealed_directory,
            tls=tls,
            token=read_token(token_file),
            insecure=insecure,
            remote_proxy=_command(remote_proxy),
            grace=grace,
            platform=chosen(platform),
        ),
        announce,
    )
