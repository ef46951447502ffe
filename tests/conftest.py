"""What holds in every test: nothing is loaded that could run code, and each checkpoint that is written is plain data."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from slurm_cluster import slurm  # noqa: F401
from slurm_training import cluster_jobs, jobs  # noqa: F401

from magnet_train.training.checkpointing import AtomicCheckpointIO


@pytest.fixture(scope="session", autouse=True)
def plain_data_only() -> Iterator[None]:
    """Refuse `torch.load(weights_only=False)` by anyone, and read back what `fit` saves."""
    load, save = torch.load, AtomicCheckpointIO.save_checkpoint

    def load_plain_data(*arguments: Any, weights_only: bool | None = None, **names: Any) -> Any:
        assert weights_only is not False, "a file was to be loaded with weights_only=False"
        return load(*arguments, weights_only=True, **names)

    def save_and_read_back(
        self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        save(self, checkpoint, path, storage_options)
        assert load(path, weights_only=True, map_location="cpu", mmap=True).keys() == checkpoint.keys()

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
        patch.setattr(torch, "load", load_plain_data)
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_read_back)
        yield


@pytest.fixture
def no_file_larger_than() -> Callable[[int], AbstractContextManager[None]]:
    """Let the kernel refuse larger files (bytes), as a full disk would (EFBIG instead of ENOSPC), root or not."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
