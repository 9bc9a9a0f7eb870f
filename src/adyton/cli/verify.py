"""adyton verify: whether evidence is genuine, and of the enclave that a policy wants."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import click
import msgspec

from adyton.cli.command import Command
from adyton.cli.options import json_option, option
from adyton.cli.values import PATH

if TYPE_CHECKING:
    from adyton.attestation.expectation import Expectation
    from adyton.attestation.judge import Judgement

MAX_FILE = 1 << 20  # bytes


@click.command(cls=Command, short_help="Whether evidence is genuine, and as a policy wants it.")
@click.argument("evidence", type=PATH)
@option("--policy", type=PATH, metavar="FILE", required=True, help="A policy file; its table [expect] is read.")
@option("--collateral", type=PATH, metavar="DIR", help="What vendors published: PCCS JSON, certificates, CRLs.")
@option("--at", metavar="TIME", help="Judge as of then, such as 2025-06-20 or 2025-06-20T12:00:00Z. Default: now.")
@option("--report-data", metavar="HEX", help="What the evidence must be bound to.")
@option("--verbose", "-v", is_flag=True, help="Explain line by line.")
@json_option("Print JSON.")
def command(
    evidence: str,
    policy: str,
    collateral: str | None,
    at: str | None,
    report_data: str | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """adyton verify evidence.json --policy policy.toml

    Say whether EVIDENCE is genuine, and whether it is of the enclave that the policy wants: adyton's own (`adyton attest`), or a vendor's raw
    evidence (a DCAP quote, an SNP report, a Nitro document, a TPM's quote), told apart by what is in it. "-" reads standard input.
    """
    from adyton.attestation.collateral import Collateral, read_folder
    from adyton.attestation.judge import judge
    from adyton.config import Policy
    from adyton.errors import UsageError

    expectation = Policy.read(policy).expect
    if expectation is None:
        raise UsageError(f"{policy} has no table [expect], which says what evidence must hold")
    judgement = judge(
        _read(evidence),
        expectation,
        Collateral() if collateral is None else read_folder(collateral),
        _time(at),
        None if report_data is None else _bytes(report_data),
    )
    if as_json:
        click.echo(msgspec.json.encode(_shown(judgement)))
    else:
        _explain(judgement, expectation, verbose=verbose)
    if not judgement.ok:
        click.get_current_context().exit(judgement.error.exit_code)


def _read(path: str) -> bytes:
    from adyton.errors import UsageError

    try:
        with click.open_file(path, "rb") as file:
            data: bytes = file.read(MAX_FILE + 1)
    except OSError as error:
        raise UsageError(
            f"the evidence {path} cannot be read: {error.strerror}; name a file, or - for standard input"
        ) from error
    if len(data) > MAX_FILE:
        raise UsageError(f"{path} has more than {MAX_FILE} bytes: it is no evidence")
    return data


def _time(text: str | None) -> dt.datetime:
    if text is None:
        return dt.datetime.now(dt.UTC)
    since_1970 = text.isascii() and text.isdigit() and len(text) > len("20250620")
    try:
        found = dt.datetime.fromtimestamp(int(text), dt.UTC) if since_1970 else dt.datetime.fromisoformat(text)
        found = found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)
        if found.timestamp() < 0:
            raise ValueError(text)
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{text!r} is no time since 1970: write 2025-06-20 or 2025-06-20T12:00:00Z", param_hint="--at"
        ) from None
    return found


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise click.BadParameter(f"{text[:80]!r} is not in hex", param_hint="--report-data") from None


def _shown(judgement: Judgement) -> dict[str, Any]:
    verified = judgement.verified
    shown: dict[str, Any] = {
        "ok": judgement.ok,
        "platform": None,
        "identity": None,
        "tcb": None,
        "binding": judgement.binding,
    }
    if verified is not None:
        shown["platform"] = verified.identity.platform
        shown["identity"] = {**msgspec.to_builtins(verified.identity), "vouchers": verified.identity.vouchers}
        shown["tcb"] = verified.tcb or None
        shown["report_data"] = verified.report_data.hex()
        shown["measured"] = dict(verified.measured)
        shown["advisories"] = list(verified.advisories)
        shown["more"] = dict(verified.more)
    shown["failures"] = [msgspec.to_builtins(failure) for failure in judgement.failures]
    return shown


def _explain(judgement: Judgement, expectation: Expectation, *, verbose: bool) -> None:
    from adyton.attestation.findings import advice

    verified = judgement.verified
    if verified is not None:
        identity = verified.identity
        if identity.platform == "sim":
            click.echo("SIMULATED: this evidence proves nothing")
        click.echo(f"genuine: {identity.platform}{f', TCB {verified.tcb}' if verified.tcb else ''}")
        if verbose:
            for field, voucher in identity.vouchers.items():
                click.echo(f"  {field:17} {_words(getattr(identity, field))}  ({voucher} vouches for it)")
            for name, value in verified.measured.items():
                click.echo(f"  {name:17} {value}")
            for name, value in verified.more.items():
                click.echo(f"  {name:17} {value}")
            if verified.advisories:
                click.echo(f"  {'advisories':17} {' '.join(verified.advisories)}")
        click.echo(f"binding: {judgement.binding}")
        if identity.platform != "sim" and not expectation.runtime and judgement.ok:
            click.echo("runtime: not checked: [expect] names none, so whatever runs on such hardware is accepted")
        if verbose:
            for check in expectation.checks(identity, verified.tcb, verified.register):
                told = (
                    f"{check.expected}: holds" if check.holds else f"{check.expected}: DOES NOT HOLD, got {check.got}"
                )
                click.echo(f"  [expect] {check.field}: {told}")
    for failure in judgement.failures:
        click.echo(f"{_NOT.get(failure.stage, failure.stage)}: {failure}")
    click.echo("accepted" if judgement.ok else f"REFUSED. {advice(judgement.failures[0])}")


_NOT = {"genuine": "not genuine"}  # of stages named after what is sought, what a failure at one is called


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value == "" else str(value)
