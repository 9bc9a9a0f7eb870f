"""adyton keygen: a key that signs images."""

from __future__ import annotations

import click
import msgspec

from adyton.cli.command import Command
from adyton.cli.options import json_option
from adyton.cli.values import PATH


@click.command(cls=Command, short_help="Make a signing key.")
@click.argument("key", type=PATH)
@json_option("The signer, and failures, as JSON.")
def command(key: str, as_json: bool) -> None:
    """adyton keygen release.key

    Make a signing key: KEY (mode 0600, keep it secret) and KEY.pub. Prints the signer, sha256:HEX, which policies name. Nothing is
    ever overwritten.
    """
    from adyton.crypto.keys import SigningKey

    made = SigningKey.generate()
    made.save(key)
    click.echo(msgspec.json.encode({"path": key, "signer": made.signer}) if as_json else made.signer)
