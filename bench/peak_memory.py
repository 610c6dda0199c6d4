"""PeakMemory: the peak memory of a contender in its own process. Linux only.

Importing torch and the peers takes seconds, and there are hundreds of contenders. One server process therefore imports
everything that a case needs, computes nothing (so it has no threads) and forks for each contender.
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

import torch

from main_kernels.processor import has_fast_bfloat16

from . import peers
from .cases import CASES, DTYPES
from .measure import peak_over

WITHOUT_PEERS = ("information", "consistency", "pooling")
"""Families of cases whose peers are torch's own: the server starts sooner."""
SETTINGS = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no compiler pool in every fork
    # Return freed large tensors to the system. glibc's dynamic threshold would keep some of them, and a peak could be
    # almost twice the memory in use. This lowers the peaks of the peers.
    "MALLOC_MMAP_THRESHOLD_": str(128 << 10),
}


class PeakMemory:
    """Run the server process while the context is open: `with PeakMemory() as peak_memory: peak_memory.of(...)`."""

    def __enter__(self) -> PeakMemory:
        command = [sys.executable, "-m", "bench.peak_memory"]
        pipe = subprocess.PIPE
        environment = {**os.environ, **SETTINGS}
        self.server = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True)
        return self

    def of(self, case: str, dtype: str, shape: Mapping[str, int], inputs: str, contender: str) -> float | None:
        """Return the peak megabytes of a contender beyond inputs and gradients; None if it fails."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([case, dtype, shape, inputs, contender]), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()


def warm_up_products(dtype: torch.dtype) -> None:
    """Run large products: MKL keeps up to 5 MB per thread for them, which the first run of a compiled contender
    allocates before the measurement."""
    left, right = torch.randn(1024, 512), torch.randn(8192, 512)
    if has_fast_bfloat16():  # elsewhere such products take seconds
        left, right = left.to(dtype), right.to(dtype)
    scores = left @ right.T
    scores @ right
    scores.T @ left


def measure(case: str, dtype: str, shape: Mapping[str, int], inputs: str, contender: str) -> float:
    """Measure one contender in this process."""
    row = CASES[case].row(dtype, shape, inputs)
    chosen = row.contenders[contender]
    if chosen.compiled:
        chosen.run()
        for leaf in row.leaves:
            leaf.grad = None
    else:
        CASES[case].tiny(dtype).contenders[contender].run()  # libraries and thread pools allocate on first use
        warm_up_products(DTYPES[dtype])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory freed by earlier calls would hide the need of this one
    return peak_over(chosen.run, lambda: sum(leaf.grad.nbytes for leaf in row.leaves if leaf.grad is not None))


def serve() -> None:
    """Answer requests from stdin, one JSON line each, with one fork per request."""
    answers = os.dup(1)
    os.dup2(2, 1)  # peers may print; send that to stderr
    importlib.import_module("torch._inductor.compile_fx")
    are_peers_loaded = False
    for line in iter(sys.stdin.readline, ""):
        if not are_peers_loaded and CASES[json.loads(line)[0]].family not in WITHOUT_PEERS:
            peers.preload()
            are_peers_loaded = True
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, json.dumps(round(measure(*json.loads(line)), 1)).encode())
                os._exit(0)
            finally:  # the error was reported when the contender was timed
                os._exit(1)
        os.close(write)
        with os.fdopen(read) as answer:
            os.write(answers, ((answer.read() or "null") + "\n").encode())
        os.waitpid(child, 0)


if __name__ == "__main__":
    serve()
