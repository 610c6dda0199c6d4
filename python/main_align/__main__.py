"""main: the entry point of `main-align` and of `python -m main_align`, with or without the packages of the extras."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; where a package it is made with is missing, say how to install it."""
    # a terminal or pipe that is not UTF-8 gets escapes instead of a traceback
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        from .cli.app import app
    except ModuleNotFoundError as error:
        sys.exit(_without_extras(sys.argv[1:], error))
    app()


def _without_extras(arguments: list[str], error: ModuleNotFoundError) -> int:
    """Serve `--version` and `doctor`, which need torch alone, and refuse everything else with the install line."""
    if arguments == ["--version"]:
        from .environment import (
            installed,
        )

        print(f"main-align {installed('main-kernels')}")
        return 0
    if arguments == ["doctor"]:
        from .cli.doctor import run_doctor

        return run_doctor()
    print(f"main-align: {error}. Install what is missing: pip install 'main-kernels[hf]'", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
