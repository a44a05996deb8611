"""Runs that diverge: they stop, say where, and leave no checkpoint that is not finite."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import TensorDataset
from training.small_runs import PLAIN, command, runs, saved, write_config

from core.data.module import DataModule
from core.errors import InputError
from core.io.checkpoint import TaskCheckpoint
from core.training.finite import check_gradients, check_loss, check_output
from vision import ImageClassifier

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def _data() -> DataModule:
    data = DataModule(batch_size=2, num_workers=0)
    data.train_set = TensorDataset(torch.rand(8, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))
    data.val_set = data.train_set
    return data


def test_a_rate_that_is_too_high_stops_the_run() -> None:
    task = ImageClassifier("test_unireplknet", 3, opt="sgd", lr=1e30)
    with pytest.raises(
        InputError, match=r"(the loss of step \d+ is|the gradient of step|is not a number).*--model\.lr"
    ):
        Trainer(max_epochs=3, **QUIET).fit(task, datamodule=_data())


def test_the_command_ends_with_a_message_and_finite_checkpoints(
    photos: Path, tmp_path: Path, no_pictures: None
) -> None:
    config = write_config(tmp_path / "photos.yaml", photos, **PLAIN)
    command("fit", config, tmp_path, "--trainer.max_epochs", "1")
    (run,) = runs(tmp_path)
    last = str(run / "checkpoints" / "last.ckpt")
    broken = saved(run)
    broken["state_dict"]["backbone.norm.weight"].fill_(torch.nan)
    torch.save(broken, tmp_path / "diverged.ckpt")

    words = ["--model.weights", last, "--model.opt", "sgd", "--model.lr", "1e30", "--trainer.max_epochs", "3"]
    with pytest.raises(SystemExit, match=r"^lightning: error: .*(not finite|not a number|is nan|is inf)"):
        command("fit", config, tmp_path, *words)
    for file in tmp_path.rglob("lightning_logs/**/*.ckpt"):
        weights = torch.load(file, weights_only=True)["state_dict"].values()
        assert all(value.isfinite().all() for value in weights if value.is_floating_point()), file

    # such weights are refused wherever a checkpoint is read
    words = ["--ckpt_path", str(tmp_path / "diverged.ckpt")]
    for verb in ("test", "predict", "export"):
        with pytest.raises(SystemExit, match=r"holds weights that are not finite \(backbone\.norm\.weight\)"):
            command(verb, config, tmp_path / verb, *words)
    with pytest.raises(InputError, match="its run diverged"):
        TaskCheckpoint.read(tmp_path / "diverged.ckpt")


def test_the_first_module_that_overflowed_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.fill_(1e38)
    x = torch.full((1, 2), 1e30)
    loss = model(x).sum()
    with pytest.raises(InputError, match=r"the loss of step 7 is (nan|inf|-inf): 1 is the first module whose output"):
        check_loss(loss, 7, model, lambda: model(x))
    with torch.no_grad():
        model[2].weight.fill_(torch.inf)
    with pytest.raises(InputError, match=r"is not a number: the weight 2\.weight is no longer finite"):
        check_output(torch.tensor([torch.nan]), model, lambda: model(x))
    check_loss(torch.tensor(1.0), 7, model, lambda: model(x))
    check_output(torch.ones(2), model, lambda: model(x))


def test_gradients_are_checked_before_the_step() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, torch.inf])
    with pytest.raises(InputError, match="the gradient of step 3 is not finite"):
        check_gradients([weight], 3)
    weight.grad = torch.ones(2)
    check_gradients([weight, nn.Parameter(torch.ones(1))], 3)
