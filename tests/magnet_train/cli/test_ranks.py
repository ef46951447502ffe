"""Ranks from the environment of torchrun and SLURM, and wrong values in it."""

from __future__ import annotations

import pytest

from magnet_train.cli.ranks import Ranks, check_restarts, read_ranks
from magnet_train.errors import UserError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "32", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "2"}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}


def test_launchers() -> None:
    assert read_ranks({}) == Ranks(0, 1, 0)
    assert read_ranks(TORCHRUN) == Ranks(3, 8, 1)
    assert read_ranks(SLURM) == Ranks(5, 16, 2)
    assert read_ranks({**SLURM, **TORCHRUN}) == Ranks(3, 8, 1)  # torchrun under SLURM: the inner one counts
    assert read_ranks({"SLURM_NTASKS": "4"}) == Ranks(0, 1, 0)  # an allocation without srun
    assert read_ranks(BATCH_SCRIPT) == Ranks(0, 1, 0)
    assert read_ranks({**BATCH_SCRIPT, **TORCHRUN}) == Ranks(3, 8, 1)


@pytest.mark.parametrize(
    "change", [{"RANK": "8"}, {"RANK": "-1"}, {"WORLD_SIZE": "many"}, {"LOCAL_RANK": ""}]
)
def test_wrong_variables_are_named(change: dict[str, str]) -> None:
    with pytest.raises(UserError, match="RANK"):
        read_ranks({**TORCHRUN, **change})


def test_restarts_need_a_store_of_their_own() -> None:
    shared = {**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "0"}
    check_restarts(shared)
    check_restarts({**shared, "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "False"})
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        check_restarts({**shared, "TORCHELASTIC_MAX_RESTARTS": "3"})
