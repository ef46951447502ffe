"""Which of several processes this one is, as torchrun or SLURM tell it."""

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


class Ranks(NamedTuple):
    """The place of a process among those that do the same.

    Args:
        rank: Its number, 0..ranks-1.
        ranks: How many there are.
        local_rank: Its number on this machine; picks the GPU.
    """

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0


def read_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Read the place of this process; alone if nothing is said.

    Raises:
        UserError: A variable is no number, or the rank is not below the number of ranks.
    """
    for names in _LAUNCHERS:
        rank_name, ranks_name, local_name = names
        if rank_name not in environment or ranks_name not in environment:
            continue
        try:
            rank, ranks = int(environment[rank_name]), int(environment[ranks_name])
            local_rank = int(environment.get(local_name, "0"))
        except ValueError as error:
            raise UserError(f"{', '.join(names)} have to be numbers ({error}); unset them.") from error
        if not (0 <= rank < ranks and local_rank >= 0):
            raise UserError(f"{rank_name} {rank} is not below {ranks_name} {ranks}; unset or correct them.")
        return Ranks(rank, ranks, local_rank)
    return Ranks()


def alone() -> bool:
    """Tell whether no other process of the run waits for this one; not yet, if it starts some itself."""
    return read_ranks().ranks == 1 and "LOCAL_RANK" not in os.environ


def check_restarts(environment: Mapping[str, str] = os.environ) -> None:
    """See that ranks which torchrun starts again (`--max-restarts`) can find each other.

    Torch keeps the addresses of all attempts in one store by default, so that a restarted rank may call one that ended.

    Raises:
        AgreedError: They could not.
    """
    shared = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if (
        shared
        and environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
        and read_ranks(environment).ranks > 1
    ):
        raise AgreedError(
            "torchrun --max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, and --standalone or "
            "--rdzv-backend c10d; without them restarted ranks look for each other at addresses of before."
        )


def restarted() -> bool:
    """Tell whether torchrun (`--max-restarts`) starts this process in place of one that ended early."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
