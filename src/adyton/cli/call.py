"""adyton call: load an image, call an entry, print the result."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource

from adyton.cli.command import Command
from adyton.cli.nearest import nearest
from adyton.cli.options import LoadOptions, json_option, load_options, option
from adyton.errors import EnclaveTypeError, UnknownEntryError, UsageError

if TYPE_CHECKING:
    from adyton.image.manifest import Entry


@click.command(cls=Command, short_help="Load an image, call an entry, print the result.")
@click.argument("image")
@click.argument("entry", required=False)
@click.argument("args", nargs=-1)
@load_options
@option("--raw", is_flag=True, help="Write a bytes or str result as it is.")
@option("--verbose", "-v", is_flag=True, help="At the end, say what the call has cost: round trips, waiting, cache.")
@json_option("Failures as JSON, too; results always are.")
def command(
    image: str,
    entry: str | None,
    args: tuple[str, ...],
    load: LoadOptions,
    raw: bool,
    verbose: bool,
    as_json: bool,  # noqa: ARG001 - root's
) -> None:
    """adyton call pay.py mean_pay pay.csv --allow-read pay.csv

    Load IMAGE (a .py or .enclave file, or sha256:… of one that the server has), call ENTRY, and print its result as JSON (bytes
    in base64), or each item of a stream, as it comes, on a line of its own. A parameter annotated str takes its ARG as it is, bytes takes base64, any other JSON. ARGS that begin with -
    stand after --. What the program prints goes to standard error.
    """
    from adyton.loader import load as load_image
    from adyton.loader import open_image

    opened = open_image(image, load.python)
    if entry is None:
        if isinstance(opened, str):
            raise UsageError(f"call which entry of {image}? Write it behind the image")
        raise UsageError(f"call which entry of {os.path.basename(image)}? {listed(opened.manifest.entries)}")
    arguments = b""
    if not isinstance(opened, str):  # an image that is here: its arguments are checked before anything is started
        arguments = encode(find(opened.manifest.entries, entry, image), args)
    else:
        arguments = b"[[" + b",".join(_json(text) for text in args) + b"],{}]"
    client = load_image(
        opened,
        on=load.on,
        policy=load.policy,
        platform=load.platform,
        sealed=load.sealed,
        allow_sim=load.allow_sim,
        timeout=load.timeout,
        stdout=2,
        **_lists_and_connection(load),
    )
    if verbose and client.enclave_id:
        click.echo(f"adyton: the enclave is {client.enclave_id} on its server", err=True)
    try:
        with client:
            if client.gives_stream(entry):
                for item in client.stream_encoded(entry, arguments, "json"):
                    _show(item, raw)
                return
            result = client.call_encoded(entry, arguments, "json")
    finally:
        if verbose:
            click.echo(f"adyton: {client.summary()}", err=True)
    _show(msgspec.msgpack.decode(result), raw)


def _show(value: Any, raw: bool) -> None:
    """A result, or an item of one, now."""
    if raw and isinstance(value, bytes | str):
        sys.stdout.buffer.write(value if isinstance(value, bytes) else value.encode())
        sys.stdout.flush()
    else:
        click.echo(msgspec.json.encode(value))


def _lists_and_connection(load: LoadOptions) -> dict[str, Any]:
    from adyton.remote.address import TLS, Caller
    from adyton.remote.bearer import read_token

    _check_that_they_serve(load.on)
    tls = TLS(load.ca, load.cert, load.key)
    lists = {f"allow_{right}": given for right, given in load.allow.items()}
    return {
        **lists,
        "tls": tls if load.on and tls != TLS() else None,
        "token": (load.on and read_token(load.token_file)) or None,
        "caller": Caller(load.caller_key, load.caller_cert) if load.caller_key or load.caller_cert else None,
        "security_type": load.security_type,
        "remote_proxy": load.remote_proxy,
        "stats": load.stats,
        "trace": load.trace,
    }


def _check_that_they_serve(on: str | None) -> None:
    """UsageError for what is typed for a connection to a server, and no server is named. Variables are for other commands, too."""
    context = click.get_current_context()
    for name in ("ca", "cert", "key", "ssl_cert", "ssl_key", "token_file"):
        if not on and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            typed = f"--{name.replace('_', '-')}"
            raise UsageError(f"{typed} is for a server, and none is named: give --on, or leave out {typed}")


def find(entries: list[Entry], name: str, image: str) -> Entry:
    """The entry of that name; UnknownEntryError lists all, with their signatures."""
    for entry in entries:
        if entry.name == name:
            return entry
    close = nearest(name, [entry.name for entry in entries])
    which = (
        " Of a .py file, public functions whose parameters are annotated are entries."
        if image.endswith(".py") and not close
        else ""
    )
    raise UnknownEntryError(f"{os.path.basename(image)} has no entry {name!r}.{close}{which} {listed(entries)}")


def listed(entries: list[Entry]) -> str:
    """The entries with their signatures, for people."""
    if not entries:
        return "It has none: a driver enters it with enter_and_run; `adyton run` runs one"
    return "\n  ".join(["Its entries are:", *map(str, entries)])


def encode(entry: Entry, args: tuple[str, ...]) -> bytes:
    """The arguments as JSON, each as its parameter's annotation asks; EnclaveTypeError if they cannot be."""
    parameters = [parameter for parameter in entry.parameters if parameter.kind == "positional"]
    rest = next((parameter for parameter in entry.parameters if parameter.kind == "rest"), None)
    required = sum(1 for parameter in entry.parameters if parameter.required)
    if len(args) < required or (len(args) > len(parameters) and rest is None):
        most = "" if rest is not None or len(parameters) == required else f" to {len(parameters)}"
        wanted = f"{required}{most}{' or more' if rest is not None else ''}"
        raise EnclaveTypeError(
            f"{entry} takes {wanted} argument{'' if wanted == '1' else 's'}, and was given {len(args)}"
        )
    encoded = []
    for number, text in enumerate(args):
        parameter = parameters[number] if number < len(parameters) else rest
        assert parameter is not None
        if parameter.type in ("str", "bytes"):
            encoded.append(msgspec.json.encode(text))
            continue
        try:
            msgspec.json.decode(text)
        except msgspec.DecodeError:
            if parameter.type not in _PLAIN:  # such as datetime or an Enum: text in JSON
                encoded.append(msgspec.json.encode(text))
                continue
            raise EnclaveTypeError(
                f"{entry}: {parameter.name} takes {parameter.type} in JSON, and {text!r} is no JSON"
            ) from None
        encoded.append(text.encode())
    return b"[[" + b",".join(encoded) + b"],{}]"


_PLAIN = ("int", "float", "bool", "list", "dict", "None")


def _json(text: str) -> bytes:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return msgspec.json.encode(text)
    return text.encode()
