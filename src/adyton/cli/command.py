"""How each command shows itself: its help begins with an example, and what click says of wrong uses says what to do next."""

from __future__ import annotations

import inspect
from typing import Any

import click
from click.core import ParameterSource

from adyton.cli.options import variable

# Options that the interface has and this version has not: what can be said instead.
_LATER = {
    ("serve", "--config"): "all clients that are let in may do the same",
    ("serve", "--data"): "enclaves get no data of the server's",
    ("serve", "--data-for"): "enclaves get no data of the server's",
}


class Command(click.Command):
    """A command whose docstring's first paragraph is an example."""

    @property
    def example(self) -> str:
        """A whole command line that works."""
        return inspect.cleandoc(self.help or "").partition("\n\n")[0]

    def get_help_option_names(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The same for each command, whoever asks first: click keeps the option that it makes of them."""
        return ["-h", "--help"]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The example, then what click writes."""
        formatter.write(f"{self.example}\n\n")
        super().format_help(ctx, formatter)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The docstring after its example."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(inspect.cleandoc(self.help or "").partition("\n\n")[2])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What click does; its errors say what to do next."""
        try:
            return super().parse_args(ctx, args)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise click.UsageError(self._advice(ctx, error), ctx) from error

    def _advice(self, ctx: click.Context, error: click.UsageError) -> str:
        text = error.format_message()
        match error:
            case click.NoSuchOption():
                later = _LATER.get((ctx.info_name or "", error.option_name))
                if later is not None:
                    return f"{error.option_name} is not in this version: {later}"
                if not error.possibilities and any(each.nargs == -1 for each in self.params):
                    return f"{text} Arguments that begin with - stand after --."
            case click.BadOptionUsage():
                for each in self.params:
                    if error.option_name in each.opts and isinstance(each, click.Option):
                        return f"{text.rstrip('.')}: {error.option_name} {each.make_metavar(ctx)}"
            case click.MissingParameter():
                return f"{text} For example: {self.example}"
            case click.BadParameter():
                name = error.param.name if error.param is not None else None
                if name is not None and ctx.get_parameter_source(name) is ParameterSource.ENVIRONMENT:
                    return f"{text} It is the value of {_variable_of(error.param)}."
        return text


def _variable_of(parameter: Any) -> str:
    return str(parameter.envvar or variable(parameter.name))
