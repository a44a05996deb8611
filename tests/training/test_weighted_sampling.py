"""Training samples drawn by weight: how often each comes, in which order, and in which process."""

from collections import Counter
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from core.data.labeled import SampleDataModule, Split
from core.data.module import DataModule
from core.data.sampler import EpochSampler
from core.data.samples import Samples, Splits
from core.errors import InputError

WEIGHTS = st.lists(st.floats(0, 100), min_size=2, max_size=40).filter(lambda weights: sum(weights) > 1e-3)


def _sampler(weights: list[float] | None, *, size: int = 0, epoch: int = 0, **options: int) -> EpochSampler:
    data = TensorDataset(torch.arange(size or len(weights or ())))
    sampler = EpochSampler(data, weights=weights, **options)
    sampler.set_epoch(epoch)
    return sampler


@given(WEIGHTS, st.integers(0, 2**31), st.integers(0, 300))
def test_order_depends_on_seed_and_epoch_alone(weights: list[float], seed: int, epoch: int) -> None:
    first, second = (_sampler(weights, seed=seed) for _ in range(2))
    list(first)  # an epoch that a resumed run does not repeat
    torch.rand(3)
    for sampler in (first, second):
        sampler.set_epoch(epoch)
    drawn = list(first)
    assert drawn == list(second) == list(first)
    assert len(drawn) == len(first) == len(weights)


def test_every_epoch_and_seed_has_its_own_order() -> None:
    orders = [list(_sampler([1.0] * 40, seed=seed, epoch=epoch)) for seed, epoch in ((0, 0), (0, 1), (7, 0))]
    assert len({tuple(order) for order in orders}) == 3


@given(WEIGHTS, st.integers(0, 10))
def test_samples_of_no_weight_are_never_drawn(weights: list[float], epoch: int) -> None:
    assert {weights[index] > 0 for index in _sampler(weights, epoch=epoch)} == {True}


def test_frequencies_follow_the_weights() -> None:
    weights = [1.0, 2.0, 0.0, 5.0, 0.5] * 20
    counts = Counter(chain.from_iterable(list(_sampler(weights, epoch=epoch)) for epoch in range(200)))
    by_weight = Counter[float]()
    for index, count in counts.items():
        by_weight[weights[index]] += count
    total = 200 * len(weights)
    for weight in set(weights):
        assert by_weight[weight] / total == pytest.approx(weight / 8.5, abs=0.02)
    assert max(counts.values()) > 200  # with replacement: several times an epoch


def test_without_weights_every_sample_comes_once() -> None:
    assert sorted(_sampler(None, size=31)) == list(range(31))


@given(st.integers(1, 6), st.integers(1, 10), st.integers(0, 5))
def test_processes_share_one_draw(replicas: int, rounds: int, epoch: int) -> None:
    size = replicas * rounds
    whole = list(_sampler([1.0 + i for i in range(size)], epoch=epoch))
    shares = [
        list(_sampler([1.0 + i for i in range(size)], epoch=epoch, replicas=replicas, rank=r)) for r in range(replicas)
    ]
    assert [share for part in zip(*shares, strict=True) for share in part] == whole


@given(st.integers(2, 40), st.integers(1, 8))
def test_processes_get_equal_numbers(size: int, replicas: int) -> None:
    samplers = [_sampler([1.0] * size, replicas=replicas, rank=rank) for rank in range(replicas)]
    assert (
        {len(list(sampler)) for sampler in samplers} == {len(sampler) for sampler in samplers} == {-(-size // replicas)}
    )


def test_the_data_module_hands_its_weights_to_the_loader() -> None:
    data = DataModule(batch_size=4, num_workers=0)
    data.train_set = TensorDataset(torch.arange(20))
    data.train_weights = [float(i in (3, 8)) for i in range(20)]
    drawn = torch.cat([batch[0] for batch in data.train_dataloader()])
    assert len(drawn) == 20
    assert set(drawn.tolist()) == {3, 8}
    data.train_weights = None
    assert sorted(torch.cat([batch[0] for batch in data.train_dataloader()]).tolist()) == list(range(20))


class _Labeled(SampleDataModule):
    """Samples without files, as many of each class as given."""

    def __init__(self, counts: list[int], balance: float) -> None:
        super().__init__(batch_size=4, num_workers=0, balance=balance)
        self.labels = [label for label, count in enumerate(counts) for _ in range(count)]

    def splits(self) -> Splits:
        samples = [(i, label) for i, label in enumerate(self.labels)]
        return Splits([f"class {i}" for i in range(max(self.labels) + 1)], samples, samples, samples)

    def dataset(self, samples: Samples, split: Split) -> Any:
        return TensorDataset(torch.arange(len(samples)))


@pytest.mark.parametrize(("balance", "share"), [(0.0, 10 / 90), (0.5, 10**0.5 / (10**0.5 + 80**0.5)), (1.0, 0.5)])
def test_rare_classes_are_drawn_more_often(balance: float, share: float) -> None:
    data = _Labeled([10, 80], balance)
    data.setup("fit")
    sampler = data.train_dataloader().sampler
    assert isinstance(sampler, EpochSampler)
    drawn = []
    for epoch in range(100):
        sampler.set_epoch(epoch)
        drawn += [data.labels[index] for index in sampler]
    assert drawn.count(0) / len(drawn) == pytest.approx(share, abs=0.02)


def test_even_classes_are_taken_as_they_are() -> None:
    data = _Labeled([10, 12], 1.0)
    data.setup("fit")
    assert data.train_weights is None


def test_uneven_classes_are_said(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        _Labeled([10, 80], 0.5).setup("fit")
    assert "The classes have 10 (class 0) to 80 (class 1) training samples" in caplog.text + capsys.readouterr().err


@pytest.mark.parametrize("balance", [-0.1, 1.5])
def test_balance_out_of_range(balance: float) -> None:
    with pytest.raises(InputError, match=rf"balance={balance}; expected a number in \[0, 1\]"):
        _Labeled([2, 2], balance)
