"""Which samples each process sees: every training sample by a fixed order, every evaluation sample once."""

import os
import random
from collections import Counter
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from core.data.module import DataModule, padding_in_batch
from core.data.sampler import EpochSampler
from core.errors import InputError

SIZES, PROCESSES, BATCHES = st.integers(1, 60), st.integers(1, 8), st.integers(1, 20)


def _numbers(size: int) -> TensorDataset:
    return TensorDataset(torch.arange(size))


def _own_samples(size: int, processes: int, rank: int, batch_size: int) -> list[int]:
    """What one process counts in an evaluation, by the numbers of the samples."""
    data = _numbers(size)
    sampler = DistributedSampler(data, processes, rank, shuffle=False)
    loader: DataLoader[Any] = DataLoader(data, batch_size=batch_size, sampler=sampler)
    batches = [batch[0].tolist() for batch in loader]
    return [n for i, batch in enumerate(batches) for n in batch[: len(batch) - padding_in_batch(loader, i, len(batch))]]


@given(SIZES, PROCESSES, BATCHES)
def test_all_processes_together_count_each_sample_once(size: int, processes: int, batch_size: int) -> None:
    counted = [_own_samples(size, processes, rank, batch_size) for rank in range(processes)]
    assert sorted(chain.from_iterable(counted)) == list(range(size))


@given(SIZES, BATCHES)
def test_no_padding_without_a_distributed_sampler(size: int, batch_size: int) -> None:
    loader = DataLoader(_numbers(size), batch_size=batch_size)
    assert [padding_in_batch(loader, i, len(batch[0])) for i, batch in enumerate(loader)] == [0] * len(loader)


@given(SIZES, PROCESSES, BATCHES)
def test_prediction_deals_out_each_sample_once_in_turn(size: int, processes: int, batch_size: int) -> None:
    assume(size >= processes)
    dealt: list[list[int]] = []
    for rank in range(processes):
        data: Any = DataModule(batch_size=batch_size, num_workers=0)
        data.trainer, data.predict_set = SimpleNamespace(global_rank=rank, world_size=processes), _numbers(size)
        dealt.append([n for batch in data.predict_dataloader() for n in batch[0].tolist()])
    assert dealt == [list(range(rank, size, processes)) for rank in range(processes)]


@given(SIZES, PROCESSES, st.integers(0, 5), st.integers(0, 5))
def test_training_covers_the_set_with_equal_shares(size: int, processes: int, seed: int, epoch: int) -> None:
    samplers = [EpochSampler(_numbers(size), replicas=processes, rank=r, seed=seed) for r in range(processes)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    shares = [list(sampler) for sampler in samplers]
    assert set(chain.from_iterable(shares)) == set(range(size))
    assert {len(share) for share in shares} == {-(-size // processes)}


@given(st.integers(0, 2**31), st.integers(0, 300), st.integers(0, 3), st.integers(1, 3))
def test_order_and_sample_seeds_depend_on_seed_epoch_and_rank_alone(
    seed: int, epoch: int, rank: int, passes: int
) -> None:
    first, second = (EpochSampler(_numbers(40), replicas=4, rank=rank, seed=seed, passes=passes) for _ in range(2))
    list(first)  # an epoch that a resumed run does not repeat
    torch.rand(3)
    for sampler in (first, second):
        sampler.set_epoch(epoch)
    assert _with_seeds(first) == _with_seeds(second)


def test_every_epoch_seed_and_process_has_its_own_order() -> None:
    def order(seed: int, epoch: int, rank: int = 0, replicas: int = 1) -> list[tuple[int, int]]:
        sampler = EpochSampler(_numbers(40), replicas=replicas, rank=rank, seed=seed)
        sampler.set_epoch(epoch)
        return _with_seeds(sampler)

    orders = [order(0, 0), order(0, 1), order(7, 0)]
    assert len({tuple(index for index, _ in o) for o in orders}) == 3
    assert len({sample_seed for o in orders for _, sample_seed in o}) == 120

    one = order(0, 0, 0, 2)
    two = order(0, 0, 1, 2)
    assert not {index for index, _ in one} & {index for index, _ in two}
    assert not {sample_seed for _, sample_seed in one} & {sample_seed for _, sample_seed in two}


def _with_seeds(sampler: EpochSampler) -> list[tuple[int, int]]:
    return [(int(index), index.seed) for index in sampler]


@given(SIZES, PROCESSES, st.integers(1, 5), st.integers(0, 5))
def test_each_pass_of_an_epoch_covers_the_set_in_its_own_order(
    size: int, processes: int, passes: int, epoch: int
) -> None:
    samplers = [EpochSampler(_numbers(size), replicas=processes, rank=r, passes=passes) for r in range(processes)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    shares = [list(sampler) for sampler in samplers]
    assert (
        {len(share) for share in shares} == {len(sampler) for sampler in samplers} == {-(-size // processes) * passes}
    )
    counts = Counter(chain.from_iterable(shares))
    assert set(counts) == set(range(size))
    assert min(counts.values()) >= passes

    one_process = EpochSampler(_numbers(40), passes=2)
    order = list(one_process)
    assert sorted(order[:40]) == sorted(order[40:]) == list(range(40))
    assert order[:40] != order[40:]


@pytest.mark.parametrize(("size", "steps", "expected"), [(10, 6, 8), (100, 3, 25), (6, 1, 2), (4, 5, 5)])
def test_an_epoch_has_at_least_so_many_steps(size: int, steps: int, expected: int) -> None:
    data = DataModule(batch_size=4, num_workers=0, min_epoch_steps=steps, drop_last=False)
    data.train_set = _numbers(size)
    loader = data.train_dataloader()
    assert len(loader) == len(list(loader)) == expected


class _Random(Dataset[float]):
    """Random numbers in the place of an augmentation."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([random.random(), np.random.random(), torch.rand(()).item(), float(index)])


def _two_epochs(num_workers: int) -> list[Tensor]:
    data = DataModule(batch_size=4, num_workers=num_workers)
    data.train_set = _Random()
    loader = data.train_dataloader()
    batches: list[Tensor] = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        batches += list(loader)
    return batches


def test_augmentation_is_the_same_with_any_number_of_loading_processes() -> None:
    torch.manual_seed(3)
    here = _two_epochs(0)
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))  # reading left the random numbers of this process as they were

    torch.manual_seed(4)
    for mine, theirs in zip(here, _two_epochs(2), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.cat(here)[:, :3].unique().numel() == 72  # each sample of each epoch has its own


def test_loading_processes_live_on() -> None:
    data = DataModule(batch_size=4, num_workers=1)
    data.train_set = data.val_set = _Ids()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        processes = {int(i) for _ in range(3) for batch in loader for i in batch}
        assert len(processes) == 1
        assert os.getpid() not in processes


class _Ids(Dataset[int]):
    """The process that reads a sample."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def test_fewer_samples_than_processes_to_predict() -> None:
    data: Any = DataModule(batch_size=2, num_workers=0)
    data.trainer, data.predict_set = SimpleNamespace(global_rank=0, world_size=3), _numbers(2)
    with pytest.raises(InputError, match=r"2 samples for 3 processes; type --trainer\.devices 1"):
        data.predict_dataloader()
