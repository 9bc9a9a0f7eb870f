"""adyton run: build what a loader target needs, and run its driver."""

from __future__ import annotations

import os
import subprocess
import sys

import click

from adyton.cli.command import Command
from adyton.cli.options import LoadOptions, json_option, load_options


@click.command(cls=Command, short_help="Build what a target needs, and run its driver.")
@click.argument("target")
@click.argument("args", nargs=-1)
@load_options
@json_option()
def command(target: str, args: tuple[str, ...], load: LoadOptions, as_json: bool) -> None:  # noqa: ARG001 - root's
    """adyton run quickstart -- --message "Asylo Rocks"

    Build the enclaves of TARGET ([tool.adyton.loader.TARGET] in pyproject.toml), then run its driver with its loader_args and
    ARGS. Exits as the driver does.
    """
    from adyton.image.project import build_loader

    loader = build_loader(".", target)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ADYTON_SSL_")}
    environment.update(load.environment())
    search = [loader.build_directory, *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(search)
    arguments = [*loader.arguments]
    remote_proxy = load.remote_proxy or loader.remote_proxy
    if remote_proxy:
        arguments.append(f"--remote_proxy={remote_proxy}")
    process = subprocess.Popen([sys.executable, loader.driver, *arguments, *args], env=environment)
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            continue  # the driver got it too, and ends its enclave in order
    raise click.exceptions.Exit(status if status >= 0 else 128 - status)
