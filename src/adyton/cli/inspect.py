"""adyton inspect: what an image is."""

from __future__ import annotations

import click
import msgspec


@click.command(short_help="What is in an image.")
@click.argument("image", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(image: str, as_json: bool) -> None:
    """adyton inspect build/demo_enclave.enclave

    Show an image's entries with their types, its measurement, its signatures and whether they hold. Runs nothing of it.
    """
    from adyton.image.describe import describe, describe_text
    from adyton.image.oci import Image

    opened = Image.open(image)
    click.echo(msgspec.json.encode(describe(opened)) if as_json else describe_text(opened))
