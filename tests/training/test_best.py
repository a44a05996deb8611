"""Which weights become the best checkpoint: exactly those that were measured, and never those that diverged."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.testing import assert_close
from training.small_runs import PLAIN, add_callbacks, command, metric, runs, saved, write_config

from core.training.callbacks import LearningCurves
from vision import ImageClassifier

pytestmark = pytest.mark.usefixtures("no_pictures")


class _Validations(Callback):
    """Keeps the weights and the metrics of every validation."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.metrics: list[dict[str, float]] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            values = trainer.callback_metrics.items()
            self.metrics.append({name: float(value) for name, value in values if name.startswith("val_")})


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.val_check_interval", "0.4"],
        ["--trainer.val_check_interval", "1"],
        ["--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null"],
        ["--trainer.check_val_every_n_epoch", "2"],
    ],
)
def test_best_holds_the_weights_that_were_measured(
    words: list[str], average: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path / "photos.yaml", photos, **PLAIN)
    words = [*words, "--trainer.max_epochs", "4", "--model.lr", "0.05", "--checkpoint.monitor", "val_loss"]
    if average:
        words += ["--trainer.callbacks+", "EMA", "--trainer.callbacks.decay", "0.5"]
    seen = _Validations()
    trainers = add_callbacks(monkeypatch, seen)
    command("fit", config, tmp_path, *words)

    (run,) = runs(tmp_path)
    losses = [metrics["val_loss"] for metrics in seen.metrics]
    best = losses.index(min(losses))
    content = saved(run, "best")
    if not average:  # the average is stored as it is after validation has given the weights back
        assert_close(content["state_dict"], seen.weights[best], rtol=0, atol=0)
    assert content["metrics"] == seen.metrics[best]

    # validated again, the file gives what it says
    (tmp_path / "again").mkdir()
    command("validate", config, tmp_path / "again", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"))
    (again,) = metric(runs(tmp_path / "again")[0], "val_loss")
    assert again == pytest.approx(min(losses), rel=1e-5)

    # the last checkpoint says what was measured only if its own weights were
    last = saved(run, "last")
    if "metrics" in last and not average:
        end_of_fit = len(losses) - 1  # the validation above is also among those seen
        assert_close(last["state_dict"], seen.weights[end_of_fit], rtol=0, atol=0)
        assert last["metrics"] == seen.metrics[end_of_fit]

    # every validation is a point of the curves
    (curves,) = [callback for callback in trainers[0].callbacks if isinstance(callback, LearningCurves)]  # type: ignore[attr-defined]
    assert [value for _, value in curves.history["val_loss"]] == losses


class _Diverges(Callback):
    """From the second validation on, accuracy looks perfect and the loss, or the metric itself, is not finite."""

    def __init__(self, name: str, value: float) -> None:
        self.name = name
        self.value = value
        self.validations = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validations += not trainer.sanity_checking
        metrics: dict[str, Any] = trainer.callback_metrics
        metrics["val_acc"].fill_(0.5 if self.validations == 1 else 1.0)
        if self.validations > 1:
            metrics[self.name].fill_(self.value)


@pytest.mark.parametrize("name", ["val_loss", "val_acc"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("words", [[], ["--checkpoint.save_top_k", "-1", "--checkpoint.filename", "best-{epoch}"]])
def test_an_epoch_that_diverged_is_never_the_best(
    words: list[str], name: str, value: float, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path / "photos.yaml", photos, **PLAIN)
    add_callbacks(monkeypatch, _Diverges(name, value))
    monkeypatch.setattr(ImageClassifier, "log_metrics", _log_tensors)
    command("fit", config, tmp_path, "--trainer.max_epochs", "3", *words)
    (run,) = runs(tmp_path)
    names = {file.name for file in (run / "checkpoints").glob("best*")}
    assert names == ({"best-epoch=0.ckpt"} if words else {"best.ckpt"})
    (file,) = (run / "checkpoints").glob("best*")
    content = torch.load(file, weights_only=True)
    assert content["epoch"] == 0
    assert content["metrics"]["val_acc"] == 0.5


def _log_tensors(self: ImageClassifier, split: str) -> None:
    self.log_dict({f"{split}_loss": torch.tensor(1.0), f"{split}_acc": torch.tensor(0.5)}, batch_size=1)


def test_the_first_epoch_that_diverged_is_not_kept_either(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def log(self: ImageClassifier, split: str) -> None:
        self.log_dict({f"{split}_loss": torch.tensor(torch.nan), f"{split}_acc": torch.tensor(1.0)}, batch_size=1)

    config = write_config(tmp_path / "photos.yaml", photos, **PLAIN)
    monkeypatch.setattr(ImageClassifier, "log_metrics", log)
    command("fit", config, tmp_path, "--trainer.max_epochs", "1", "--checkpoint.monitor", "val_loss")
    (run,) = runs(tmp_path)
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert "Best epoch" not in capsys.readouterr().out
