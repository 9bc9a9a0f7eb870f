"""adyton broker: gives secrets to enclaves that prove what they are; and `verify`: whether its log is whole."""

from __future__ import annotations

import click
import msgspec

from adyton.cli.command import Command
from adyton.cli.options import json_option, option
from adyton.cli.values import PATH
from adyton.crypto.digest import is_digest
from adyton.errors import IntegrityError, UsageError


class _Group(Command, click.Group):
    """A command that has one below it."""


@click.group(cls=_Group, invoke_without_command=True, short_help="Give secrets to enclaves that prove what they are.")
@option("--config", type=PATH, metavar="FILE", help="broker.toml: the secrets, and who is given them.")
@option("--listen", metavar="HOST:PORT", default="127.0.0.1:4322", show_default=True, help="Port 0 takes a free one.")
@option("--new-log", is_flag=True, help="Begin a new log, though there are keys: the one before is gone.")
@json_option()
@click.pass_context
def command(
    context: click.Context,
    config: str | None,
    listen: str,
    new_log: bool,
    as_json: bool,  # noqa: ARG001 - root's
) -> None:
    """adyton broker --config broker.toml --listen 0.0.0.0:4322

    Give each secret that FILE names to enclaves whose evidence meets its policy, and to nobody else, and keep a log of it. The broker's key, by
    which enclaves know it, is printed at the start; so is the log's head, to be kept elsewhere. SIGTERM drains.
    """
    if context.invoked_subcommand is not None:
        return
    if config is None:
        raise click.UsageError("Missing option '--config'. For example: adyton broker --config broker.toml", context)
    from adyton.broker.config import BrokerConfig
    from adyton.broker.secret_memory import harden
    from adyton.broker.server import serve

    host, port = _host_and_port(listen)

    def say(text: str) -> None:
        click.echo(f"adyton broker: {text}", err=True)

    for missing in harden():
        say(missing)

    def ready(address: str) -> None:
        click.echo(f"adyton broker listening on {address}")

    serve(BrokerConfig.read(config), host, port, ready, say, new_log=new_log)


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(f"--listen {text}: write HOST:PORT, an IPv6 address in brackets")
    return host, int(port)


@command.command("verify", cls=Command, short_help="Whether a broker's log is whole.")
@click.argument("log", type=PATH)
@click.option(
    "--key", type=PATH, metavar="FILE", help="The public key that signs it. Default: LOG.key.pub, which lies beside it."
)
@option("--head", nargs=2, metavar="NUMBER DIGEST", help="A head that was seen earlier, and kept elsewhere.")
@json_option("Print JSON.")
def verify(log: str, key: str | None, head: tuple[str, str] | None, as_json: bool) -> None:
    """adyton broker verify broker.log

    Say whether LOG is as its broker wrote it: no record changed, left out, put in or moved, and none missing at the end as far as LOG.head tells, or an
    earlier head that was kept elsewhere (--head). Whoever has the log's private key can write another log that is whole: only --head shows that.
    """
    from adyton.broker.audit import verify_log
    from adyton.crypto.keys import PublicKey

    known = None
    if head is not None:
        if not (head[0].isascii() and head[0].isdigit()) or not is_digest(head[1]):
            raise UsageError(
                f"--head {' '.join(head)}: write a record's number and its digest, as `adyton broker` printed them"
            )
        known = int(head[0]), head[1]
    public = PublicKey.load(key or f"{log}.key.pub")
    report = verify_log(log, public, known)
    if as_json:
        click.echo(
            msgspec.json.encode(
                {
                    "ok": report.ok,
                    "records": report.head.number,
                    "released": report.released,
                    "refused": report.refused,
                    "healed": report.healed,
                    "cut": report.cut,
                    "head": {"number": report.head.number, "digest": report.head.digest},
                    "signer": public.signer,
                    "problems": report.problems,
                }
            )
        )
    else:
        click.echo(
            f"{report.head.number} records: {report.released} released, {report.refused} refused; signed by {public.signer}"
        )
        if report.healed:
            click.echo(f"{report.healed} times a line was cut by a crash; each time the next record says so")
        if report.cut and report.ok:
            click.echo(
                f"{report.cut} bytes behind the last record are none: a broker is writing, or was killed, and will say so when it starts"
            )
        click.echo(f"head {report.head.number} {report.head.digest}")
        for problem in report.problems:
            click.echo(f"problem: {problem}")
    if not report.ok:
        if as_json:
            click.get_current_context().exit(IntegrityError.exit_code)
        raise IntegrityError(f"the log {log} is not as its broker wrote it: {report.problems[0]}")
