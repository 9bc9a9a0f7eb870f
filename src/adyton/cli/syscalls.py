"""adyton syscalls: the process runtime's table."""

from __future__ import annotations

import click
import msgspec

from adyton.cli.command import Command
from adyton.cli.options import json_option, option


@click.command(cls=Command, short_help="What a program in an enclave may ask of the kernel.")
@option("--markdown", is_flag=True, help="Print the page docs/syscalls.md.")
@json_option("Print JSON.")
def command(as_json: bool, markdown: bool) -> None:
    """adyton syscalls

    What becomes of each system call in an enclave: done locally, emulated by the supervisor, or refused with an errno, and why.
    """
    from adyton.runtime.process import table_page
    from adyton.runtime.process.table import ROWS

    if as_json and markdown:
        raise click.UsageError("--json or --markdown: take one of the two")
    if markdown:
        click.echo(table_page.markdown(), nl=False)
        return
    if as_json:
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
                "note": row.note or None,
                "x86_64": row.x86_64,
                "aarch64": row.aarch64,
            }
            for row in ROWS
        ]
        click.echo(msgspec.json.encode(rows))
        return
    for row in ROWS:
        if row.refused:
            outcome = f"refused  {row.refused.errno}: {row.refused.reason}"
        else:
            limits = [
                f"{each.otherwise.errno} where argument {each.argument}: {each.otherwise.reason}" for each in row.checks
            ]
            notes = [each for each in (row.emulated.how if row.emulated else "", row.note) if each]
            outcome = f"{row.action:8} {'; '.join([*notes, *limits])}".rstrip()
        click.echo(f"{row.group:8} {row.name:24} {outcome}")
