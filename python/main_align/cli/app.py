"""app: the `main-align` Typer application. Each command is one module of this package.

To add a command, write its function in a module of its own and register it below. Commands import heavy libraries
inside their functions, which keeps `--help` fast.
"""

from __future__ import annotations

from typing import Annotated

import typer

from . import (
    answer,
    doctor,
    filter,
    merge,
    report,
    score,
    sft,
    train,
)
from .common import CommandGroup

app = typer.Typer(
    name="main-align",
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        from ..environment import installed

        typer.echo(f"main-align {installed('main-kernels')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Score instruction-response pairs by mutual alignment, filter them, and train in both directions."""


app.command("score", no_args_is_help=True, epilog=score.FORMATS)(score.score)
app.command("filter", no_args_is_help=True)(filter.filter)
app.command("merge", no_args_is_help=True)(merge.merge)
app.command("report", no_args_is_help=True)(report.report)
app.command("sft", no_args_is_help=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(
    sft.sft
)
app.command("train", no_args_is_help=True)(train.train)
app.command("answer", no_args_is_help=True)(answer.answer)
app.command("doctor")(doctor.doctor)
