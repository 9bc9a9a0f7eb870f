"""adyton init: a project that runs and is tested. What it writes is in the folder new_project beside this module."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from importlib import resources

import click
import msgspec

from adyton.cli.command import Command
from adyton.cli.options import json_option
from adyton.cli.values import PATH
from adyton.errors import UsageError

FILES = ("pyproject.toml", "demo_enclave.py", "demo_driver.py", "test_demo.py", "policy.toml")


@click.command(cls=Command, short_help="Write a project that runs and is tested.")
@click.argument("directory", metavar="[DIR]", default=".", type=PATH)
@json_option("What was written, and failures, as JSON.")
def command(directory: str, as_json: bool) -> None:
    """adyton init demo

    Write a project into DIR, which is made where it is missing; default: this folder. It has a confidential program that encrypts a
    message, an application that calls it, a test of the two, and a policy. Nothing is ever overwritten.
    """
    write_project(directory)
    if as_json:
        click.echo(msgspec.json.encode({"path": os.path.abspath(directory), "files": FILES}))
        return
    click.echo(f"wrote {', '.join(FILES)}\n\nnext:")
    if os.path.realpath(directory) != os.path.realpath("."):
        click.echo(f"  cd {shlex.quote(directory)}")
    click.echo('  adyton run quickstart -- --message "Asylo Rocks"   # the program, in an enclave')
    click.echo("  adyton inspect build/demo_enclave.enclave          # what its image is")
    click.echo(
        "  python -m pytest                                   # its tests, without an enclave; pip install pytest"
    )


def write_project(directory: str) -> None:
    """Write FILES into the folder; UsageError, and nothing is written, if one is there already or the folder cannot be had."""
    try:
        os.makedirs(directory, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"{directory} is a file: name a folder, or one that is to be made") from None
    except OSError as error:
        raise UsageError(f"the folder {directory} cannot be made: {error.strerror}; name one of yours") from None
    present = [name for name in FILES if os.path.lexists(os.path.join(directory, name))]
    if present:
        raise UsageError(
            f"{', '.join(present)} {'is' if len(present) == 1 else 'are'} in {directory} already, and nothing is overwritten: "
            "name a new folder, such as adyton init demo"
        )
    written: list[str] = []
    try:
        for name in FILES:
            text = (resources.files("adyton.cli") / "new_project" / name).read_text("utf-8")
            if name == "pyproject.toml":
                text = text.replace('name = "quickstart"', f'name = "{_project_name(directory)}"', 1)
            path = os.path.join(directory, name)
            with open(path, "x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            os.unlink(path)
        raise UsageError(f"nothing can be written into {directory}: {error.strerror}; name a folder of yours") from None


def _project_name(directory: str) -> str:
    """The folder's name, as far as a project may be called so (PEP 508)."""
    plain = unicodedata.normalize("NFKD", os.path.basename(os.path.abspath(directory)).lower())
    words = re.findall(r"[a-z0-9]+", plain.encode("ascii", "ignore").decode())
    return "-".join(words) or "quickstart"
