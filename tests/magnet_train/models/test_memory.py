"""Batches are halved where memory is full, and stay so."""

from __future__ import annotations

import pytest
import torch

from magnet_train.models.memory import FittingBatches


def limited(most: int, tried: list[int]):
    def work(batch):
        tried.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return list(batch)

    return work


def test_every_item_comes_once_and_in_order_and_it_is_said_once():
    said, tried = [], []
    batches = FittingBatches(16, "clips", said.append)
    for _ in range(2):
        parts = list(batches.run(range(20), limited(3, tried)))
        assert [item for part in parts for item in part] == list(range(20))
    assert tried == [16, 8, 4, *[2] * 20]
    assert said == ["memory does not suffice for 16 clips at once; continuing with 2"]


def test_nothing_is_said_where_nothing_fits():
    said: list[str] = []
    with pytest.raises(torch.OutOfMemoryError):
        list(FittingBatches(4, "clips", said.append).run(range(4), limited(0, [])))
    assert said == []


def test_a_batch_of_the_least_size_is_not_halved():
    tried: list[int] = []
    with pytest.raises(torch.OutOfMemoryError):
        list(FittingBatches(4, "clips", least=4).run(range(4), limited(2, tried)))
    assert tried == [4]


def test_other_errors_pass():
    def work(batch):
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        list(FittingBatches(4, "clips").run(range(4), work))


def test_the_error_of_a_cpu_counts():
    said, sizes = [], []

    def work(batch):
        sizes.append(len(batch))
        torch.empty(2**55 if len(batch) > 1 else 1)

    list(FittingBatches(2, "clips", said.append).run(range(2), work))
    assert sizes == [2, 1, 1]
    assert len(said) == 1
