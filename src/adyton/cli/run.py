"""adyton run: build what a loader target needs, and run its driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from adyton.cli.command import Command
from adyton.cli.options import LoadOptions, json_option, load_options

# Variables that mean the same as others, which we give to the driver: what was typed is in those.
_OTHER_NAMES = ("ADYTON_CONFIG", "ADYTON_SSL_CERT", "ADYTON_SSL_KEY")


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

    loader = build_loader(".", target, python=load.python)
    environment = {name: value for name, value in os.environ.items() if name not in _OTHER_NAMES}
    environment.update(load.environment())
    search = [loader.build_directory, *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(search)
    arguments = [*loader.arguments]
    remote_proxy = load.remote_proxy or loader.remote_proxy
    if remote_proxy:
        arguments.append(f"--remote_proxy={remote_proxy}")
    with _interrupts_left_to_the_driver():
        status = subprocess.call([sys.executable, loader.driver, *arguments, *args], env=environment)
    raise click.exceptions.Exit(status if status >= 0 else 128 - status)


@contextmanager
def _interrupts_left_to_the_driver() -> Iterator[None]:
    """An interrupt at the terminal goes to the driver too, which ends its enclave in order; we wait for it.

    The handler does nothing, so that no exception comes between the driver's end and its status. What is executed does not inherit it,
    while one that ignores interrupts is inherited, and left alone.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
