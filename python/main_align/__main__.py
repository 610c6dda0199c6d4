"""main: the entry point of `main-align` and `python -m main_align`, which works without the optional packages.

Ctrl-C ends it quietly from the first line on, so everything that takes time to import is imported within a `try`.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as typing has it, whose import takes a while
if TYPE_CHECKING:
    from typing import NoReturn

try:
    import signal

    from .errors import exit_code
except KeyboardInterrupt:
    sys.exit(130)


def main() -> None:
    """Run the command line. If one of its packages is missing, print how to install it."""
    try:
        _run_quietly()
    except KeyboardInterrupt as error:  # before or after the command itself, which prints a message
        sys.exit(exit_code(error))


def _run_quietly() -> None:
    # Characters that the terminal's encoding lacks are escaped; by default they raise.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _interrupt)
    try:
        try:
            _run()
        finally:
            if sys.stdout is not None:  # closed by the shell: >&-
                sys.stdout.flush()  # raises here if the pipe is closed, not while the interpreter shuts down
    except OSError as error:
        if sys.stdout is not None:  # what is left in its buffer is lost
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader has seen enough; end as quietly as click and rich do
            print(f"main-align: {error}. Check the path, its permissions and the free disk space.", file=sys.stderr)
        sys.exit(1)


def _interrupt(number: int, frame: object) -> NoReturn:
    """End like Ctrl-C, so that temporary files are deleted and finished work is named; a second signal kills."""
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt(128 + number)


def _run() -> None:
    try:
        from .cli.app import app
    except ModuleNotFoundError as error:
        sys.exit(_run_without_extras(sys.argv[1:], error))
    app()


def _run_without_extras(arguments: list[str], error: ModuleNotFoundError) -> int:
    """Run `--version` and `doctor`, which need torch alone. Print the install command for everything else."""
    if arguments == ["--version"]:
        from .environment import installed

        print(f"main-align {installed('main-kernels')}")
        return 0
    if arguments == ["doctor"]:
        from .cli.doctor import run_doctor

        return run_doctor()
    print(f"main-align: {error}. Install the missing package: pip install 'main-kernels[hf]'", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
