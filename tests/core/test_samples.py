"""Samples that are broken, missing or named, whatever the modality."""

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import InputError, MissingError
from core.samples import collate_found, found, named, read_or_skip


def _broken() -> int:
    raise InputError("a.jpg is broken; replace it")


def _missing() -> int:
    raise MissingError("there is no a.jpg")


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
    assert found([1, None, 3], "image") == [1, 3]
    collate = pickle.loads(pickle.dumps(partial(collate_found, kind="cloud")))  # a loading process gets it so
    x, y = collate([(torch.ones(2), 4), None, (torch.zeros(2), 5)])
    assert (x.tolist(), y.tolist()) == ([[1, 1], [0, 0]], [4, 5])
    with pytest.raises(InputError, match=r"^no cloud of a whole batch can be used; check the files named"):
        collate([None, None])


def test_names_of_files_arrays_and_other_sources() -> None:
    samples = [(Path("a/b.jpg"), 1), (("digits/0007", np.zeros(3)), 2), ("stream 4", 3)]
    assert [name for _, name in named(samples)] == ["a/b.jpg", "digits/0007", "stream 4"]
    assert [source for source, _ in named(samples)] == [source for source, _ in samples]
