"""Dtype, CommandGroup, hide_library_progress, log_reasons: shared by the commands."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ..errors import UserError, exit_code


class Dtype(str, Enum):
    """Dtype of the model. `auto` is bfloat16 if the device multiplies it natively, else float32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class CommandGroup(TyperGroup):
    """Print expected errors of any command as one line on stderr."""

    def invoke(self, ctx: Any) -> Any:
        with _plain_errors():
            return super().invoke(ctx)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Exit with 1 after a user error, with 130 after Ctrl-C, 143 after SIGTERM. A bug keeps its traceback."""
    try:
        yield
    except UserError as error:
        _exit(str(error), 1)
    except ModuleNotFoundError as error:
        extra = "train" if error.name in ("trl", "peft") else "hf"
        _exit(f"{error}. Install the missing package: pip install 'main-kernels[{extra}]'", 1)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            raise  # the reader has seen enough: `main-align ... | head -1` ends without a message
        _exit(f"{error}. Check the path, its permissions and the free disk space.", 1)
    except KeyboardInterrupt as error:
        _exit("interrupted", exit_code(error))


def _output_is_closed() -> bool:
    """Return True if the reader of stdout has closed the pipe. A pipe to another process may be the broken one."""
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _exit(message: str, code: int) -> NoReturn:
    typer.echo(f"main-align: {message}", err=True)
    raise typer.Exit(code)


def hide_library_progress() -> None:
    """Turn off the progress bars of transformers, so that only ours is drawn."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def log_reasons(log: Callable[[str], None], counts: Mapping[str, int], reasons: Mapping[str, str]) -> None:
    """Log the number of rows and the first reason for each status that has a reason."""
    for status, reason in reasons.items():
        log(f"{status}: {counts[status]:,} rows, the first: {reason}")
