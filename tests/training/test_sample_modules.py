"""The two halves of a data module of labeled samples: what a modality gives, and what a data set gives."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import Dataset

import audio
import pointcloud
import video
import vision
from core.data.folders import find_files
from core.data.labeled import FolderDataModule, SampleDataModule
from core.data.samples import Samples, Splits, hold_out
from core.errors import InputError, MissingError

FOLDERS = [audio.AudioFolder, pointcloud.PointFolder, video.VideoFolder, vision.ImageFolder]


class _Listed(Dataset[Any]):
    def __init__(self, samples: Samples, split: str) -> None:
        self.samples, self.split = samples, split

    def __len__(self) -> int:
        return len(self.samples)


class _Notes(SampleDataModule):
    """A modality of text files."""

    def find(self, path: Path) -> list[Path]:
        return find_files(path, (".txt",), "notes")

    def dataset(self, samples: Samples, split: str) -> _Listed:
        return _Listed(samples, split)


class _TwoNotes(_Notes):
    checked = 0

    def check_data(self) -> None:
        self.checked += 1

    def splits(self) -> Splits:
        files = [(Path(f"{i}.txt"), i % 2) for i in range(6)]
        return Splits(("even", "odd"), files[:3], files[3:4], files[4:])


class _NotesFolder(FolderDataModule, _Notes):
    pattern = "*.txt"


def test_splits_become_data_sets_and_the_test_split_is_predicted() -> None:
    data: Any = _TwoNotes(batch_size=2)
    data.prepare_data()
    data.setup("fit")
    assert (data.checked, data.classes) == (1, ["even", "odd"])
    parts = {name: getattr(data, f"{name}_set") for name in ("train", "val", "test", "predict")}
    assert [part.split for part in parts.values()] == list(parts)
    assert [label for _, label in parts["train"].samples] == [0, 1, 0]
    assert parts["predict"].samples == [(path, str(path)) for path, _ in parts["test"].samples]


def test_with_a_path_to_predict_the_data_are_not_asked(tmp_path: Path) -> None:
    data: Any = _TwoNotes(predict_path=str(tmp_path))
    data.trainer = SimpleNamespace(predicting=True)
    with pytest.raises(MissingError, match="holds no notes"):
        data.prepare_data()
    (tmp_path / "a.txt").touch()
    data.prepare_data()
    data.setup("predict")
    assert data.checked == 0
    assert data.train_set is None
    assert data.predict_set.samples == [(tmp_path / "a.txt", str(tmp_path / "a.txt"))]
    data.trainer = SimpleNamespace(predicting=False)
    data.prepare_data()
    assert data.checked == 1


def test_class_folders_of_any_modality(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        for name in ("a", "b", "_other"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / name / f"{i}.txt").touch()
    data: Any = _NotesFolder(str(tmp_path), batch_size=2)
    data.prepare_data()
    data.setup("fit")
    assert data.classes == ["a", "b"]
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [6, 4, 4]
    with pytest.raises(MissingError, match=r"no folder .*/elsewhere/train; expected .*/<class>/\*\.txt"):
        _NotesFolder(str(tmp_path / "elsewhere")).prepare_data()


def test_share_of_each_class_is_rounded() -> None:
    labels = [0] * 16 + [1] * 24 + [2] * 3 + [3]
    kept, held_out = hold_out(labels, 0.1)
    assert [[labels[i] for i in held_out].count(label) for label in range(4)] == [2, 2, 1, 0]
    assert sorted(kept + held_out) == list(range(len(labels)))
    assert hold_out(labels, 0.1) == (kept, held_out)


def test_evaluation_needs_no_training_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "0.txt").touch()
    data: Any = _NotesFolder(str(tmp_path), batch_size=2)
    data.trainer = SimpleNamespace(predicting=False, state=SimpleNamespace(fn=TrainerFn.TESTING))
    data.prepare_data()
    data.setup("test")
    assert data.classes == ["a", "b"]
    assert [label for _, label in data.test_set.samples] == [label for _, label in data.val_set.samples] == [0, 1]
    with pytest.raises(MissingError, match=rf"^there is no folder {tmp_path}/train; expected "):
        data.setup("fit")
    data.trainer.state.fn = TrainerFn.FITTING
    with pytest.raises(MissingError, match=rf"^there is no folder {tmp_path}/train; expected "):
        data.prepare_data()


def _flat(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i:02d}.txt").touch()
    return root


def test_class_folders_without_splits_train_and_a_share_is_held_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data: Any = _NotesFolder(str(_flat(tmp_path / "leaves", oak=20, beech=10, _notes=4)))
    with caplog.at_level("INFO"):
        assert data.spec().classes == ("beech", "oak")
    assert "its folders are the classes beech, oak" in caplog.text
    assert "3 of its 30 files are held out for validation, the same share of each class" in caplog.text
    data.setup("fit")
    assert [label for _, label in data.val_set.samples] == [0, 1, 1]
    assert not {path for path, _ in data.val_set.samples} & {path for path, _ in data.train_set.samples}
    assert len(data.train_set.samples) == 27
    again: Any = _NotesFolder(str(tmp_path / "leaves"))
    assert again.read_splits().val == data.read_splits().val


@pytest.mark.parametrize(
    ("name", "option"), [("Train", "--data.train_split Train"), ("valid", "--data.val_split valid")]
)
def test_a_folder_that_looks_like_a_split_is_no_class(name: str, option: str, tmp_path: Path) -> None:
    root = _flat(tmp_path, oak=3, **{name: 3})
    with pytest.raises(InputError, match=rf"its folder {name} looks like a split and not like a class: type {option}"):
        _NotesFolder(str(root)).spec()


def test_sources_are_files_folders_arrays_and_lists_of_them(tmp_path: Path) -> None:
    _flat(tmp_path, oak=2)
    data = _TwoNotes()
    files = [tmp_path / "oak" / "00.txt", tmp_path / "oak" / "01.txt"]
    assert data.sources(str(tmp_path)) == files
    assert data.sources([files[1], files[0]]) == [files[1], files[0]]
    (first, array), second = data.sources([torch.ones(3), files[0]])
    assert (first, array.tolist(), second) == ("array 0", [1, 1, 1], files[0])
    with pytest.raises(InputError, match="cannot predict on dict; give a path"):
        data.sources({"a": 1})


@pytest.mark.parametrize("kind", FOLDERS, ids=lambda kind: kind.__name__)
def test_class_folders_of_the_modalities_say_the_same(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"^no folder was given; type --data\.root FOLDER, with FOLDER/train"):
        kind().check_data()
    with pytest.raises(MissingError, match=rf"^there is no folder {tmp_path}/train; expected "):
        kind(str(tmp_path)).check_data()
    with pytest.raises(MissingError, match=rf"^{tmp_path}/x is neither a file nor a folder; give "):
        kind(predict_path=str(tmp_path / "x")).setup("predict")
