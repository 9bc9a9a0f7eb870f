"""adyton doctor: what this machine can do, and why not."""

from __future__ import annotations

import click
import msgspec

from adyton.cli.command import Command
from adyton.cli.options import json_option
from adyton.errors import PlatformError


@click.command(cls=Command, short_help="What this machine can do, and why not.")
@json_option("Print JSON.")
def command(as_json: bool) -> None:
    """adyton doctor

    Try all that the process runtime needs, and look for trusted hardware. Exit code 31 if no enclave can be started here.
    """
    from adyton.runtime.process.doctor import findings

    found = findings()
    lacking = [each for each in found if each.needed and not each.ok]
    if as_json:
        click.echo(msgspec.json.encode({"ok": not lacking, "findings": found}))
    else:
        width = max(len(each.name) for each in found)
        for each in found:
            mark = "ok  " if each.ok else "FAIL" if each.needed else "-   "
            click.echo(f"{mark} {each.name:{width}}  {each.detail}")
        click.echo("enclaves can be started here" if not lacking else "NO enclave can be started here")
    if lacking:
        raise click.exceptions.Exit(PlatformError.exit_code)
