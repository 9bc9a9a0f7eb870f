"""adyton sign: a signature more for an image."""

from __future__ import annotations

import click
import msgspec

from adyton.cli.command import Command
from adyton.cli.options import json_option, option
from adyton.cli.values import PATH
from adyton.errors import UsageError


@click.command(cls=Command, short_help="Sign an image.")
@click.argument("image", type=PATH)
@option(
    "--debug", is_flag=True, help="Sign with the debug key, which everybody has: such an image is refused by default."
)
@option("--key", metavar="FILE", help="Sign with this key, made by `adyton keygen`.")
@option("--output", "-o", metavar="FILE", help="Write the signed image there, not over IMAGE.")
@json_option("The result, and failures, as JSON.")
def command(image: str, debug: bool, key: str | None, output: str | None, as_json: bool) -> None:
    """adyton sign build/demo_enclave.enclave --key release.key

    Add a signature to IMAGE. Its measurement stays, and so do its other signatures. Prints the path and the measurement.
    """
    from adyton.crypto.keys import SigningKey, debug_key
    from adyton.image.sign import sign_image

    source = click.get_current_context().get_parameter_source
    if debug and key is not None:  # the one that was typed, if one is in the environment
        if source("key") is source("debug"):
            raise UsageError("--debug and --key are two ways to sign: give one of them, or sign twice")
        debug = source("debug") is click.core.ParameterSource.COMMANDLINE
    if not debug and key is None:
        raise UsageError("sign with which key? Give --key FILE (made by `adyton keygen`), or --debug")
    signing = debug_key() if debug or key is None else SigningKey.load(key)
    signed = sign_image(image, signing, output)
    path = output or image
    if as_json:
        click.echo(
            msgspec.json.encode(
                {"path": path, "measurement": signed.measurement, "signer": signing.signer, "debug": debug}
            )
        )
    else:
        click.echo(f"{path} {signed.measurement}")
