"""The command line, thin: options become arguments of the layers below, their errors become exit codes."""

from __future__ import annotations


def main() -> None:
    """Run the command; the entry point of the `adyton` script."""
    from adyton.cli.root import run

    run()
