"""command_parser: the parser of a command of the suite."""

from __future__ import annotations

import argparse


def command_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of a module, as it is.

    Args:
        name: the command, a key of COMMANDS in bench/__main__.py.
        text: the docstring.
    """
    return argparse.ArgumentParser(
        prog=f"python -m bench {name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
