"""The root command: finds commands, and turns errors into exit codes, for people or (`--json`) for programs."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

import click
import msgspec

from adyton._version import __version__
from adyton.cli.command import Command
from adyton.errors import AdytonError

COMMANDS = (
    "attest",
    "broker",
    "build",
    "call",
    "doctor",
    "init",
    "inspect",
    "keygen",
    "proxy",
    "run",
    "serve",
    "sign",
    "syscalls",
    "verify",
)
LATER = {
    "ps": "a server says nothing of its enclaves",
    "stop": "an enclave ends with its client",
}
INTERRUPTED = 130


class _Failed(Exception):  # noqa: N818 - a carrier
    """Takes an error of ours past click, which has ideas of its own about EOFError and OSError; ours can be those, too."""

    def __init__(self, error: AdytonError) -> None:
        super().__init__(str(error))
        self.error = error


class Root(Command, click.Group):
    """Imports a command's module only when it is used, so that each start is short."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"adyton.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            from adyton.cli.nearest import nearest

            if args[0] in LATER:
                raise click.UsageError(
                    f"adyton {args[0]} is not in this version: {LATER[args[0]]}. adyton --help lists what there is", ctx
                ) from None
            raise click.UsageError(f"No such command {args[0]!r}.{nearest(args[0], COMMANDS)}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AdytonError as error:
            raise _Failed(error) from error


@click.group(
    cls=Root,
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
@click.version_option(__version__, prog_name="adyton")
def root() -> None:
    """adyton call pay.py mean_pay pay.csv --allow-read pay.csv

    Load a confidential program into an enclave, here or on another machine, and call it as if it were local.
    """


def run(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    given = sys.argv[1:] if arguments is None else arguments
    before_separator = given[: given.index("--")] if "--" in given else given
    as_json = "--json" in before_separator or _flag("ADYTON_JSON")
    try:
        status = root.main(given, "adyton", standalone_mode=False)
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        status = _fail(as_json, error.exit_code, type(error).__name__, error.format_message(), click_error=error)
    except _Failed as failed:
        ours = failed.error
        failures = [msgspec.to_builtins(failure) for failure in ours.failures]
        status = _fail(as_json, ours.exit_code, type(ours).__name__, str(ours), failures, _traceback(ours))
    except (KeyboardInterrupt, click.Abort):
        status = _fail(as_json, INTERRUPTED, "Interrupted", "interrupted")
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads what we print
        status = 1
    except OSError as error:  # a full disk, and the like
        place = error.filename
        if place is None and error.errno == errno.ENOSPC:
            place, as_json = "standard output cannot be written", False
            sys.stdout = None  # what it still holds would be tried again at the end
        text = ": ".join(str(part) for part in (place, error.strerror or error) if part)
        status = _fail(as_json, 2 if _nowhere() else 1, type(error).__name__, text)
    except UnicodeEncodeError as error:  # bytes of the command line, as Python keeps them
        status = _fail(as_json, 2, "UsageError", f"{error.object!a} is no text: it holds bytes that are not UTF-8")
    sys.exit(status if isinstance(status, int) else 0)


def _flag(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "t", "true", "y", "yes", "on")


def _nowhere() -> bool:
    """Whether the working directory is gone."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _traceback(error: AdytonError) -> str:
    text: str = getattr(error, "traceback", "")
    return text


def _printable(text: str) -> str:
    """The text without what a terminal would obey: some of it an enclave or a server wrote."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode() for each in text
    )


def _fail(
    as_json: bool,
    exit_code: int,
    kind: str,
    message: str,
    failures: list[Any] | None = None,
    traceback: str = "",
    click_error: click.ClickException | None = None,
) -> int:
    if _nowhere() and click_error is None:
        message += ". The working directory was deleted: change to one that is there"
    if as_json:
        error = {"exit_code": exit_code, "type": kind, "message": message, "failures": failures or []}
        click.echo(msgspec.json.encode({"error": error}))
    elif click_error is not None:
        click_error.show()
    else:
        if traceback:
            click.echo(_printable(traceback.rstrip()), err=True)
        click.echo(f"adyton: {_printable(message)}", err=True)
    return exit_code
