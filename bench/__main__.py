"""The benchmark suite: `python -m bench COMMAND --help` explains each command."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "kernels": ("bench.kernels", "every op against bare products and the peers, on a CPU"),
    "scoring": ("bench.scoring", "scoring pairs against its own products, the backbone and the peers"),
    "training": ("bench.training", "a training step against its own products and TRL's SFTTrainer"),
    "device": ("bench.device.__main__", "the ops on a GPU; bench/device.sh runs all stages"),
    "quality": ("bench.quality.__main__", "how well each score finds corrupted pairs"),
    "report": ("bench.report", "write every table and picture of README and docs from bench/results/"),
    "check": ("bench.check", "compare a run with the results of the same kind of machine"),
    "peers": ("bench.peers", "list the peers with their pinned versions, or install them beside torch"),
    "host-time": ("bench.host_time", "what the host does before an op's main launch, without a GPU"),
    "aot": ("bench.aot.__main__", "compile every Triton kernel for three architectures, without a GPU"),
    "mutual-information": ("bench.mutual_information", "estimators against known mutual information"),
}
"""Command: its module, which has `main(words) -> exit status`, and what it does."""


def usage() -> str:
    """Return the help of the suite."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: python -m bench COMMAND [options]", "", __doc__ or "", "", *lines])


def main(words: list[str]) -> int:
    """Run one command with its own options."""
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        print(f"python -m bench: no command {words[0]}\n\n{usage()}", file=sys.stderr)
        return 2
    from main_align.errors import UserError

    try:
        return importlib.import_module(COMMANDS[words[0]][0]).main(words[1:]) or 0
    except UserError as error:  # the pairs or the model that an option names
        print(f"python -m bench {words[0]}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
