"""Peak memory of a contender, each in a process of its own.

Importing torch and the peers takes seconds and there are hundreds of contenders, so one process that has imported
everything and computed nothing (it has no threads yet) forks for each. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType

from . import peers
from .cases import CASES
from .measure import peak_over

SETTINGS = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of compilers in every fork
    # A large tensor that is freed is gone: glibc's moving threshold would keep some, now these and now those, and a
    # peak would be up to nearly twice what is in use. It is the peers' peaks that this lowers.
    "MALLOC_MMAP_THRESHOLD_": str(128 << 10),
}


class Peaks:
    """``with Peaks() as peaks: peaks.of(...)``: megabytes over the inputs and the gradients, None where it failed."""

    def __enter__(self) -> Peaks:
        command = [sys.executable, "-m", "bench.peak_memory"]
        pipe = subprocess.PIPE
        environment = {**os.environ, **SETTINGS}
        self.server = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True)
        return self

    def of(self, case: str, dtype: str, shape: Mapping[str, int], contender: str) -> float | None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([case, dtype, shape, contender]), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()


def measure(case: str, dtype: str, shape: Mapping[str, int], contender: str) -> float:
    row = CASES[case].row(dtype, shape)
    chosen = row.contenders[contender]
    if chosen.compiled:
        chosen.run()
        for leaf in row.leaves:
            leaf.grad = None
    else:
        CASES[case].tiny(dtype).contenders[contender].run()  # libraries and thread pools allocate on first use
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed must not hide what this one needs
    return peak_over(chosen.run, lambda: sum(leaf.grad.nbytes for leaf in row.leaves if leaf.grad is not None))


def serve() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # what peers print goes to stderr
    peers.preload()
    importlib.import_module("torch._inductor.compile_fx")
    for line in iter(sys.stdin.readline, ""):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, json.dumps(round(measure(*json.loads(line)), 1)).encode())
                os._exit(0)
            finally:  # an error was already told when the contender was timed
                os._exit(1)
        os.close(write)
        with os.fdopen(read) as answer:
            os.write(answers, ((answer.read() or "null") + "\n").encode())
        os.waitpid(child, 0)


if __name__ == "__main__":
    serve()
