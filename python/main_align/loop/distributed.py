"""The processes of a run started with `accelerate launch`: the first one writes, all of them work."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

WAIT = timedelta(days=7)  # a stage of the first process alone may take long; the others wait for it


class Processes:
    """Who this process is. Make one before anything else touches torch.distributed."""

    def __init__(self, *, use_cpu: bool) -> None:
        state = PartialState(cpu=use_cpu, timeout=WAIT)
        self.rank, self.count = int(state.process_index), int(state.num_processes)
        self.device = torch.device(state.device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        PartialState().wait_for_everyone()

    def leave(self) -> None:
        """The last thing a program does. Threads of gloo that outlive the interpreter abort it, and a group destroyed
        at once may take back what another process still waits for: so such a program waits a moment, and just ends."""
        if self.count > 1 and torch.distributed.get_backend() == "gloo":
            self.wait()
            sys.stdout.flush()
            time.sleep(1.0)
            os._exit(0)

    def agree(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        box = [value]
        broadcast_object_list(box)
        return box[0]
