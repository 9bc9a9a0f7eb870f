"""adyton syscalls: the process runtime's table."""

from __future__ import annotations

import click
import msgspec

from adyton.cli.command import Command
from adyton.cli.options import json_option


@click.command(cls=Command, short_help="What a program in an enclave may ask of the kernel.")
@json_option("Print JSON.")
def command(as_json: bool) -> None:
    """adyton syscalls

    What becomes of each system call in an enclave: done locally, emulated by the supervisor, or refused with an errno, and why.
    """
    from adyton.runtime.process.table import ROWS

    rows = [
        {
            "name": row.name,
            "group": row.group,
            "action": row.action,
            "errno": row.refused.errno if row.refused else None,
            "reason": row.refused.reason if row.refused else None,
            "how": row.emulated.how if row.emulated else None,
            "conditions": [
                {"argument": check.argument, "errno": check.otherwise.errno, "reason": check.otherwise.reason}
                for check in row.checks
            ],
            "x86_64": row.x86_64,
            "aarch64": row.aarch64,
        }
        for row in ROWS
    ]
    if as_json:
        click.echo(msgspec.json.encode(rows))
        return
    for row in ROWS:
        if row.refused:
            outcome = f"refused  {row.refused.errno}: {row.refused.reason}"
        else:
            limits = "; ".join(
                f"{each.otherwise.errno} where argument {each.argument}: {each.otherwise.reason}" for each in row.checks
            )
            how = f"emulated {row.emulated.how}" if row.emulated else "local   "
            outcome = f"{how} {limits}".rstrip()
        click.echo(f"{row.group:8} {row.name:24} {outcome}")
