"""Samples that are broken, missing or named, whatever the modality."""

import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from core.data.module import DataModule, padding_in_batch
from core.data.samples import EmptyBatch, collate_found, named, read_or_skip
from core.errors import InputError, MissingError, listed


def _broken() -> int:
    raise InputError("a.jpg is broken; replace it")


def _missing() -> int:
    raise MissingError("there is no a.jpg")


def test_names_are_listed_and_those_left_out_are_counted() -> None:
    assert listed(["a", "b", 3], 3) == "a, b, 3"
    assert listed("abcde", 3) == "a, b, c and 2 more"


def test_what_can_be_read_is_given() -> None:
    assert read_or_skip(lambda: 7, skip_broken=True) == read_or_skip(lambda: 7, skip_broken=False) == 7


def test_broken_sample_stops_or_is_skipped_with_a_warning() -> None:
    with pytest.raises(InputError, match=r"^a\.jpg is broken; replace it, or type --data\.skip_broken true$"):
        read_or_skip(_broken, skip_broken=False)
    with pytest.warns(UserWarning, match=r"^skipped: a\.jpg is broken; replace it$"):
        assert read_or_skip(_broken, skip_broken=True) is None


@pytest.mark.parametrize("skip", [True, False])
def test_missing_file_is_never_skipped(skip: bool) -> None:
    with pytest.raises(MissingError, match=r"^there is no a\.jpg$"):
        read_or_skip(_missing, skip_broken=skip)


def test_batch_of_what_was_found() -> None:
    assert collate_found([1, None, 3], "image", tuple) == (1, 3)
    collate = pickle.loads(pickle.dumps(partial(collate_found, kind="cloud")))  # a loading process gets it so
    x, y = collate([(torch.ones(2), 4), None, (torch.zeros(2), 5)])
    assert (x.tolist(), y.tolist()) == ([[1, 1], [0, 0]], [4, 5])
    assert collate([None, None]) == EmptyBatch("cloud")


class _Some(torch.utils.data.Dataset[int | None]):
    """The numbers from 0 on, some of them broken."""

    def __init__(self, size: int, broken: set[int]) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int | None:
        return None if index in self.broken else index


def _data(size: int, broken: set[int], *, workers: int = 0, rank: int = 0, replicas: int = 1) -> Any:
    data: Any = DataModule(batch_size=2, num_workers=workers)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=replicas)
    data.collate = partial(collate_found, kind="cloud")
    data.train_set = data.val_set = data.test_set = data.predict_set = _Some(size, broken)
    return data


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("broken", "batches"),
    [({4}, [[0, 1], [2, 3]]), ({0, 1}, [[2, 3], [4]]), ({1, 2, 3}, [[0], [4]]), ({0, 1, 4}, [[2, 3]])],
)
def test_batches_of_broken_samples_are_left_out(broken: set[int], batches: list[list[int]], workers: int) -> None:
    data = _data(5, broken, workers=workers)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        got = list(loader)
        assert [batch.tolist() for batch in got] == batches
        assert [padding_in_batch(loader, i, len(batch)) for i, batch in enumerate(got)] == [0] * len(got)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_without_any_sample_that_can_be_used(workers: int) -> None:
    data = _data(5, set(range(5)), workers=workers)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        with pytest.raises(InputError, match=r"^no cloud can be used; check the files named in the warnings$"):
            list(loader)


def test_epoch_of_training_keeps_its_number_of_batches() -> None:
    loader = _data(8, set(range(4))).train_dataloader()
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)
        order, got = list(loader.sampler), [batch.tolist() for batch in loader]
        pairs = [[n for n in order[i : i + 2] if n > 3] for i in range(0, 8, 2)]
        found = [pair for pair in pairs if pair]
        assert got == found + [found[-1]] * (4 - len(found))
        if len(found) < 4:
            return
    pytest.fail("no batch was broken as a whole")


def test_several_processes_must_agree_on_their_batches() -> None:
    shared = {"rank": 0, "replicas": 2}
    for loader in (_data(8, {0, 2}, **shared).val_dataloader(), _data(8, {0, 2}, **shared).test_dataloader()):
        with pytest.raises(InputError, match=r"no cloud in a whole batch can be used; .* --trainer\.devices 1"):
            list(loader)
    assert [batch.tolist() for batch in _data(8, {0, 2}, **shared).predict_dataloader()] == [[4, 6]]
    assert len(list(_data(8, {0, 1, 2, 3, 4}, **shared).train_dataloader())) == 2


def test_names_of_files_arrays_and_other_sources() -> None:
    samples = [(Path("a/b.jpg"), 1), (("digits/0007", np.zeros(3)), 2), ("stream 4", 3)]
    assert [name for _, name in named(samples)] == ["a/b.jpg", "digits/0007", "stream 4"]
    assert [source for source, _ in named(samples)] == [source for source, _ in samples]
