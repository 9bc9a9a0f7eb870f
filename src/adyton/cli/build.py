"""adyton build: the images that [tool.adyton] declares."""

from __future__ import annotations

import os

import click
import msgspec

from adyton.cli.command import Command
from adyton.cli.options import json_option, option, python_option


@click.command(cls=Command, short_help="Build images that [tool.adyton] declares.")
@click.argument("targets", nargs=-1, metavar="[TARGET]…")
@option("--key", metavar="FILE", help="Sign with this key, whatever pyproject.toml says.")
@python_option()
@json_option("The images, and failures, as JSON.")
def command(targets: tuple[str, ...], key: str | None, python: str, as_json: bool) -> None:
    """adyton build demo_enclave

    Build the images of TARGETs ([tool.adyton.enclave.TARGET], or those that [tool.adyton.loader.TARGET] needs), else all, into
    build/NAME.enclave, and the modules of their .proto files beside them. Prints PATH and measurement of each.
    """
    from adyton.crypto.keys import SigningKey
    from adyton.image.project import build_project
    from adyton.image.pyproject import find_project

    signing = None if key is None else SigningKey.load(key)
    built = build_project(find_project("."), targets or None, key=signing, python=python)
    if as_json:
        click.echo(msgspec.json.encode([{"path": each.path, "measurement": each.measurement} for each in built]))
        return
    for each in built:
        path = os.path.relpath(each.path)
        click.echo(f"{each.path if path.startswith('..') else path} {each.measurement}")
