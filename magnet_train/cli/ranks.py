"""Ranks of this process as torchrun, SLURM or Lightning's launcher set them in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from magnet_train.errors import AgreedError, UserError

_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun
    # srun; not SLURM_NTASKS, which a batch script has as well, where one process runs on its own
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
# The first process has 0 in each one that is set: a child of Lightning's launcher within a SLURM job has LOCAL_RANK 1
# and its parent's SLURM_PROCID 0; the first process of torchrun's second machine has LOCAL_RANK 0 and RANK 8.
_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")


class Ranks(NamedTuple):
    """The place of a process among those of the same run."""

    rank: int = 0  # below `ranks`
    ranks: int = 1  # number of processes
    local_rank: int = 0  # on this machine; picks the GPU


def read_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Read the place of this process, rank 0 of 1 where no launcher set it; raises `UserError` for wrong variables."""
    for names in _LAUNCHERS:
        rank_name, ranks_name, local_name = names
        if rank_name not in environment or ranks_name not in environment:
            continue
        try:
            rank, ranks = int(environment[rank_name]), int(environment[ranks_name])
            local_rank = int(environment.get(local_name, "0"))
        except ValueError as error:
            raise UserError(f"{', '.join(names)} must be integers ({error}); unset them.") from error
        if not (0 <= rank < ranks and local_rank >= 0):
            raise UserError(f"{rank_name} {rank} is not below {ranks_name} {ranks}; unset or correct them.")
        return Ranks(rank, ranks, local_rank)
    return Ranks()


def is_first_process() -> bool:
    """Return whether this is rank 0 of the run, which alone prints and changes the run's folder."""
    return all(os.environ.get(name, "0") == "0" for name in _RANK_VARIABLES)


def is_only_process() -> bool:
    """Return whether no other process of the run exists yet; Lightning's launcher may still start some."""
    return read_ranks().ranks == 1 and "LOCAL_RANK" not in os.environ


def print_once(message: str) -> None:
    """Print on the first process only."""
    if is_first_process():
        print(message, flush=True)


def check_restarts(environment: Mapping[str, str] = os.environ) -> None:
    """Raise `AgreedError` if ranks that torchrun restarts (`--max-restarts`) could not find each other.

    By default torch keeps the addresses of all attempts in one store, so a restarted rank may call one that has ended.
    """
    shared = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if shared and restarts and read_ranks(environment).ranks > 1:
        raise AgreedError(
            "torchrun --max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, and --standalone or "
            "--rdzv-backend c10d; without them, restarted ranks connect to addresses of ranks that have ended."
        )


def was_restarted() -> bool:
    """Return whether torchrun (`--max-restarts`) started this process in place of one that failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
