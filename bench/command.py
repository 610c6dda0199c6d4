"""command_parser, output_file, at_least_one: the parser of a command of the suite, and types of its options."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def command_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of a module, as it is.

    Args:
        name: the command, a key of COMMANDS in bench/__main__.py.
        text: the docstring.
    """
    return argparse.ArgumentParser(
        prog=f"python -m bench {name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def output_file(text: str) -> Path:
    """Return the path of an option for a file to write. Missing folders are created.

    Raises:
        argparse.ArgumentTypeError: no file can be written there; otherwise this would show after the measurement.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; give a file name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from None
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written")
    return path


def at_least_one(text: str) -> int:
    """Return the positive integer of an option.

    Raises:
        argparse.ArgumentTypeError: it is smaller than 1.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number
