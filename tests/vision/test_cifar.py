"""CIFAR in the files of its Python archive: which image goes where, and files that are others."""

import hashlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from cli.small_sets import python2_pickle, write_cifar

from core.errors import InputError, MissingError
from vision import CIFAR10, CIFAR100


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_cifar(tmp_path / "cifar", torchvision.datasets.CIFAR10, each=20, labels=10)


def _set_up(root: Path, kind: Any = CIFAR10, **options: Any) -> Any:
    data = kind(str(root), **{"check_md5": False, "batch_size": 4, "num_workers": 0} | options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_files_become_splits_and_a_share_of_each_class_is_held_out(root: Path) -> None:
    data = _set_up(root)
    sizes = [len(part) for part in (data.train_set, data.val_set, data.test_set, data.predict_set)]
    assert sizes == [90, 10, 20, 20]
    assert Counter(label for _, label in data.val_set.samples) == dict.fromkeys(range(10), 1)
    names = [{name for (name, _), _ in part.samples} for part in (data.train_set, data.val_set)]
    assert not names[0] & names[1]
    assert data.classes == [f"class {i}" for i in range(10)]
    assert data.predict_set[3][1] == "test_batch/00003"
    chosen = _set_up(root, val_split="test")
    assert (len(chosen.train_set), len(chosen.val_set)) == (100, 20)


def test_pixels_are_those_that_torchvision_reads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "base_folder", root.name)
    expected = torchvision.datasets.CIFAR10(str(root.parent), train=False)
    data = _set_up(root)
    assert data.classes == expected.classes
    for i in range(len(expected)):
        x, label = data.test_set[i]
        assert x.dtype == torch.uint8
        assert np.array_equal(x.permute(1, 2, 0).numpy(), np.asarray(expected[i][0]))
        assert label == expected[i][1]


def test_pixels_are_normalized_by_the_numbers_in_common_use() -> None:
    assert CIFAR10().mean == (0.4914, 0.4822, 0.4465)
    assert CIFAR10().std == (0.247, 0.2435, 0.2616)
    assert CIFAR100().mean == (0.5071, 0.4865, 0.4409)
    assert CIFAR100().std == (0.2673, 0.2564, 0.2762)


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    root = write_cifar(tmp_path / "cifar", torchvision.datasets.CIFAR100, each=200, labels=100)
    data = _set_up(root, CIFAR100)
    assert (len(data.classes), len(data.train_set), len(data.val_set), len(data.test_set)) == (100, 100, 100, 200)
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 32, 32)


def test_files_are_compared_with_the_published_sums(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"data_batch_1 is not the published file, whose MD5 is c99cafc1.*check_md5 f"):
        _set_up(root, check_md5=True)

    def published(files: Any) -> list[list[str]]:
        return [[name, hashlib.md5((root / name).read_bytes()).hexdigest()] for name, _ in files]

    kind = torchvision.datasets.CIFAR10
    lists = {"train_list": published(kind.train_list), "test_list": published(kind.test_list)}
    about = published([["batches.meta", ""]])[0]
    meta = {"filename": about[0], "md5": about[1]}
    monkeypatch.setattr(CIFAR10, "published", SimpleNamespace(**lists, meta=meta, url=kind.url))
    _set_up(root, check_md5=True)
    content = bytearray((root / "test_batch").read_bytes())
    content[-40] ^= 1
    (root / "test_batch").write_bytes(content)
    with pytest.raises(InputError, match="test_batch is not the published file"):
        _set_up(root, check_md5=True)


@pytest.mark.parametrize("name", ["data_batch_5", "test_batch", "batches.meta"])
def test_missing_file(name: str, root: Path) -> None:
    (root / name).unlink()
    with pytest.raises(MissingError, match=rf"there is no .*/{name}; unpack cifar-10-python\.tar\.gz from https://.*"):
        _set_up(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, "has label 10; expected 0 to 9"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, r"\(2, 3072\) and int64 labels of shape \(1,\)"),
        ({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, "holds float64"),
        ({b"data": np.zeros((2, 3072), np.uint8)}, "data_batch_3 has no entry 'labels'"),
        ([1, 2], "data_batch_3 has no entry 'data'"),
    ],
)
def test_files_that_are_others(content: Any, message: str, root: Path) -> None:
    (root / "data_batch_3").write_bytes(python2_pickle(content))
    with pytest.raises(InputError, match=message):
        _set_up(root)


def test_options_out_of_range() -> None:
    with pytest.raises(InputError, match=r"val_split='val', val_share=0\.1"):
        CIFAR10(val_split="val")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="val_share=1"):
        CIFAR10(val_share=1)
