"""Folds: every file is held out once, and the command trains on each and prints mean and spread."""

import re
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training.small_runs import QUIET, runs, saved, write_config, write_photos

from core.cli import main
from core.data.samples import divide_in_folds
from core.errors import InputError
from vision import ImageFolder


@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.integers(2, 6))
def test_folds_are_disjoint_complete_and_even(labels: list[int], folds: int) -> None:
    divided = divide_in_folds(labels, folds)
    assert sorted(i for fold in divided for i in fold) == list(range(len(labels)))
    for label in set(labels):
        counts = [sum(labels[i] == label for i in fold) for fold in divided]
        assert max(counts) - min(counts) <= 1
    sizes = [len(fold) for fold in divided]
    assert max(sizes) - min(sizes) <= 1
    assert divided == divide_in_folds(labels, folds)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Six pictures of each class, without splits."""
    return write_photos(tmp_path / "flat", train=6) / "train"


def test_data_module_holds_out_one_fold(flat: Path) -> None:
    held_out = []
    for fold in range(3):
        data = ImageFolder(str(flat), size=32, folds=3, fold=fold)
        splits = data.read_splits()
        assert not {path for path, _ in splits.train} & {path for path, _ in splits.val}
        assert len(splits.train) == 12
        held_out += [path for path, _ in splits.val]
    assert len(set(held_out)) == len(held_out) == 18
    first = ImageFolder(str(flat), size=32, folds=3, fold=0)
    assert ImageFolder(str(flat), size=32, folds=3).read_splits().val == first.read_splits().val


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (3, 3), (3, -1), (-2, 0)])
def test_impossible_folds(folds: int, fold: int, flat: Path) -> None:
    with pytest.raises(InputError, match=rf"folds={folds}, fold={fold}; expected 2 or more folds"):
        ImageFolder(str(flat), folds=folds, fold=fold)


def test_folds_and_a_validation_folder_contradict(photos: Path) -> None:
    with pytest.raises(InputError, match=r"--data\.folds 3 divides the training files, and .*val would not be read"):
        ImageFolder(str(photos), folds=3).read_splits()


def test_command_trains_on_each_fold(flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    config = write_config(tmp_path / "photos.yaml", flat, folds=3)
    main(["fit", "-c", str(config), *QUIET, "--trainer.default_root_dir", str(out), "--trainer.max_epochs", "1"])
    assert len(runs(out)) == 3
    reached = [saved(run, "best")["metrics"]["val_acc"] for run in runs(out)]

    printed = capsys.readouterr().out
    row = re.search(r"^val_acc +(\S+) +(\S+) +(\S+) (\S+) (\S+)$", printed, flags=re.MULTILINE)
    assert row is not None
    mean, spread, *each = map(float, row.groups())
    assert mean == pytest.approx(statistics.mean(reached), rel=1e-3)
    assert spread == pytest.approx(statistics.stdev(reached), rel=1e-3)
    assert each == pytest.approx(reached, rel=1e-3)

    main(
        ["fit", "-c", str(config), *QUIET, "--trainer.default_root_dir", str(out), "--data.fold", "1",
         "--trainer.max_epochs", "1"]
    )  # fmt: skip
    assert len(runs(out)) == 4


def test_resuming_needs_one_fold(flat: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "photos.yaml", flat, folds=3)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", str(config), "--ckpt_path", "last"])
    assert "--ckpt_path resumes one run; say of which fold: --data.fold 0 to 2" in str(stopped.value.code)


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.fast_dev_run", "1"],
        ["--trainer.enable_checkpointing", "false", "--trainer.max_epochs", "1"],
        ["--trainer.limit_val_batches", "0", "--trainer.max_epochs", "1"],
    ],
)
def test_folds_with_nothing_to_compare_have_no_table(
    words: list[str], flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "photos.yaml", flat, folds=2)
    main(["fit", "-c", str(config), *QUIET, "--trainer.default_root_dir", str(tmp_path), *words])
    printed = capsys.readouterr().out
    assert "Fold 1 of 2" in printed
    assert "metric" not in printed.split("Fold 1 of 2")[1].replace("metrics.csv", "")
