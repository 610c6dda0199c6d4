"""Processes: rank, barrier and broadcast of a run started with `accelerate launch`."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

BARRIER_TIMEOUT = timedelta(days=7)  # the main process alone may spend long in a stage


class Processes:
    """This process and its process group. Create it before any other use of torch.distributed.

    Args:
        use_cpu: bool. Run on the CPU even if the machine has a GPU. Default: False.
    """

    def __init__(self, *, use_cpu: bool = False) -> None:
        # accelerate looks for other processes on a CPU only if it is asked for the CPU
        cpu = use_cpu or not torch.accelerator.is_available()
        state = PartialState(cpu=cpu, timeout=BARRIER_TIMEOUT)
        self.rank, self.world_size = int(state.process_index), int(state.num_processes)
        self.device = torch.device(state.device)

    @property
    def is_main(self) -> bool:
        """Return True in the process that writes files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Block until every process reaches this call."""
        PartialState().wait_for_everyone()

    def broadcast(self, value: Any) -> Any:
        """Return the main process's value in every process."""
        box = [value]
        broadcast_object_list(box)
        return box[0]

    def shutdown(self) -> None:
        """End the program; call it last.

        With gloo and several processes, exit without Python's shutdown: gloo threads that outlive the interpreter
        abort it, and destroying the group at once can break a barrier that another process is still in.
        """
        if self.world_size > 1 and torch.distributed.get_backend() == "gloo":
            self.barrier()
            sys.stdout.flush()
            time.sleep(1.0)
            os._exit(0)
