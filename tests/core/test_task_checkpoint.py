"""What a checkpoint says of its task and its run, however it was written."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import InputError, MissingError
from core.io.checkpoint import AtomicCheckpointIO, TaskCheckpoint

CONTENT: dict[str, Any] = {
    "state_dict": {"w": torch.ones(2)},
    "hyper_parameters": {"_class_path": "vision.ImageClassifier", "lr": 0.5, "spec": {"classes": ["a", "b"]}},
    "epoch": 3,
    "global_step": 40,
    "config": "model: {class_path: ImageClassifier}\n",
    "metrics": {"val_acc": 0.75},
}


def _write(path: Path, **changed: Any) -> Path:
    """A checkpoint with other entries; those that are None are left out."""
    content = {name: value for name, value in {**CONTENT, **changed}.items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def test_everything_that_fit_wrote(tmp_path: Path) -> None:
    checkpoint = TaskCheckpoint.read(_write(tmp_path / "a.ckpt"))
    assert checkpoint.path == tmp_path / "a.ckpt"
    assert checkpoint.class_path == "vision.ImageClassifier"
    assert checkpoint.hyperparameters == {"lr": 0.5, "spec": {"classes": ["a", "b"]}}
    assert checkpoint.spec == {"classes": ["a", "b"]}
    assert checkpoint.state_dict["w"].tolist() == [1, 1]
    assert checkpoint.config == {"model": {"class_path": "ImageClassifier"}}
    assert checkpoint.metrics == {"val_acc": 0.75}
    assert (checkpoint.epoch, checkpoint.step, checkpoint.averaged) == (3, 40, False)
    assert TaskCheckpoint.read(_write(tmp_path / "b.ckpt", current_model_state={})).averaged


def test_a_run_folder_gives_its_best_checkpoint_else_its_last(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"has no checkpoints/best\.ckpt and no checkpoints/last\.ckpt"):
        TaskCheckpoint.read(tmp_path)
    last = _write(tmp_path / "checkpoints" / "last.ckpt")
    assert TaskCheckpoint.read(tmp_path).path == last
    best = _write(tmp_path / "checkpoints" / "best.ckpt")
    assert TaskCheckpoint.read(str(tmp_path)).path == best


def test_a_folder_of_runs_offers_the_newest_run(tmp_path: Path) -> None:
    for age, name in ((30, "version_0"), (10, "version_2"), (20, "version_10")):
        file = _write(tmp_path / "logs" / "ImageClassifier" / name / "checkpoints" / "last.ckpt")
        os.utime(file, (1000 - age, 1000 - age))
    newest = tmp_path / "logs" / "ImageClassifier" / "version_2"
    for folder in (tmp_path / "logs", newest.parent):
        with pytest.raises(MissingError, match=f"give the folder of a run, such as {newest}, or a file"):
            TaskCheckpoint.read(folder)


def test_configuration_beside_the_checkpoint(tmp_path: Path) -> None:
    path = _write(tmp_path / "checkpoints" / "last.ckpt", config=None)
    assert TaskCheckpoint.read(path).config is None
    (tmp_path / "config.yaml").write_text("data: {class_path: ImageFolder}\n")
    assert TaskCheckpoint.read(path).config == {"data": {"class_path": "ImageFolder"}}
    _write(path)
    assert TaskCheckpoint.read(path).config == {"model": {"class_path": "ImageClassifier"}}  # its own comes first
    with pytest.raises(InputError, match="is not YAML"):
        TaskCheckpoint.read(_write(tmp_path / "a.ckpt", config="{"))


def test_configuration_runs_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not YAML"):
        TaskCheckpoint.read(_write(tmp_path / "a.ckpt", config=f"!!python/object/apply:os.mkdir [{tmp_path}/ran]"))
    assert not (tmp_path / "ran").exists()


def test_score_of_a_plain_trainer_belongs_to_the_file_that_it_chose(tmp_path: Path) -> None:
    state = {"monitor": "val_loss", "best_model_score": torch.tensor(0.25), "best_model_path": "runs/best.ckpt"}
    best = _write(tmp_path / "best.ckpt", metrics=None, callbacks={"ModelCheckpoint": state, "other": {"x": 1}})
    assert TaskCheckpoint.read(best).metrics == {"val_loss": 0.25}
    shutil.copy(best, tmp_path / "last.ckpt")
    assert TaskCheckpoint.read(tmp_path / "last.ckpt").metrics == {}


@pytest.mark.parametrize("entry", ["state_dict", "hyper_parameters"])
def test_files_that_are_no_checkpoint_of_a_task(entry: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"lightning fit wrote: it has no '{entry}'. Weights alone go to --model.weig"):
        TaskCheckpoint.read(_write(tmp_path / "a.ckpt", **{entry: None}))
    with pytest.raises(MissingError, match=r"there is no checkpoint .*nothing\.ckpt; give a file that lightning fit"):
        TaskCheckpoint.read(tmp_path / "nothing.ckpt")
