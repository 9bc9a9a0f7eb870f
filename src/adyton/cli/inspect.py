"""adyton inspect: what an image is."""

from __future__ import annotations

import os

import click
import msgspec

from adyton.cli.command import Command
from adyton.cli.options import json_option, python_option
from adyton.cli.values import PATH


@click.command(cls=Command, short_help="What is in an image.")
@click.argument("image", type=PATH)
@python_option()
@click.option("--policy", "as_policy", is_flag=True, help="Print a policy file that accepts this image and no other.")
@json_option("As JSON.")
def command(image: str, python: str, as_policy: bool, as_json: bool) -> None:
    """adyton inspect build/demo_enclave.enclave

    Show what is in IMAGE (a .enclave file, or a .py file, which is built first): its entries with their types, its measurement, its
    signatures and whether they hold. Runs nothing of it. With --policy it prints what pins that image: adyton inspect --policy IMAGE > policy.toml.
    """
    from adyton.image.build import built_image
    from adyton.image.describe import describe, describe_text, policy_text
    from adyton.image.oci import Image

    a_program = image.endswith(".py") and os.path.isfile(image)
    opened = built_image(image, None, python) if a_program else Image.open(image)
    if as_policy:
        if as_json:
            raise click.UsageError("--policy prints TOML: give it or --json, not both")
        click.echo(policy_text(opened))
        return
    click.echo(msgspec.json.encode(describe(opened)) if as_json else describe_text(opened))
