"""Which samples each process sees: every training sample by a fixed order, every evaluation sample once."""

from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

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


@given(st.integers(0, 2**31), st.integers(0, 300), st.integers(0, 3))
def test_order_and_worker_seeds_depend_on_seed_epoch_and_rank_alone(seed: int, epoch: int, rank: int) -> None:
    first, second = (EpochSampler(_numbers(40), replicas=4, rank=rank, seed=seed) for _ in range(2))
    list(first)  # an epoch that a resumed run does not repeat
    torch.rand(3)
    for sampler in (first, second):
        sampler.set_epoch(epoch)
    assert list(first) == list(second)
    assert torch.equal(first.generator.get_state(), second.generator.get_state())


def test_every_epoch_seed_and_process_has_its_own_order() -> None:
    def order(seed: int, epoch: int, rank: int = 0, replicas: int = 1) -> tuple[list[int], int]:
        sampler = EpochSampler(_numbers(40), replicas=replicas, rank=rank, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler), sampler.generator.initial_seed()

    orders = [order(0, 0), order(0, 1), order(7, 0)]
    assert len({tuple(o) for o, _ in orders}) == len({s for _, s in orders}) == 3
    (one, seed_one), (two, seed_two) = order(0, 0, 0, 2), order(0, 0, 1, 2)
    assert not set(one) & set(two)
    assert seed_one != seed_two


def test_fewer_samples_than_processes_to_predict() -> None:
    data: Any = DataModule(batch_size=2, num_workers=0)
    data.trainer, data.predict_set = SimpleNamespace(global_rank=0, world_size=3), _numbers(2)
    with pytest.raises(InputError, match=r"2 samples for 3 processes; type --trainer\.devices 1"):
        data.predict_dataloader()
