"""What a trained classifier measures, and what its checkpoints hold."""

from pathlib import Path

import pytest
import timm
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset
from training.small_runs import CLASSES, PLAIN, add_callbacks, command, metric, runs, saved, write_config, write_photos

from core.data.module import DataModule
from vision import ImageClassifier, ImageFolder

TINY = "test_unireplknet"


def test_accuracy_and_loss_equal_a_count_by_hand(trained: dict[str, Path], tmp_path: Path) -> None:
    path = trained["folder"] / "checkpoints" / "best.ckpt"
    root = write_photos(tmp_path / "photos", train=1, val=5)
    for wrong in (root / "val" / "brick").glob("*.png"):  # some that the model takes for another class
        wrong.rename(root / "val" / "sea" / f"wrong_{wrong.name}")
    config = write_config(tmp_path / "photos.yaml", root, batch_size=4)
    command("validate", config, tmp_path, "--ckpt_path", str(path))
    data = ImageFolder(str(root), size=32, batch_size=15, num_workers=0)
    data.setup("validate")
    x, y = next(iter(data.val_dataloader()))
    with torch.no_grad():
        logits = ImageClassifier.load_from_checkpoint(path, map_location="cpu").eval()(x)
    accuracy = sum(int(row.argmax()) == int(label) for row, label in zip(logits, y, strict=True)) / 15
    assert 0 < accuracy < 1
    (run,) = runs(tmp_path)
    assert metric(run, "val_acc") == pytest.approx([accuracy])
    loss = [-float(torch.log_softmax(row, 0)[label]) for row, label in zip(logits, y, strict=True)]
    assert metric(run, "val_loss") == pytest.approx([sum(loss) / 15], rel=1e-5)


def test_checkpoint_restores_outputs_and_class_names(trained: dict[str, Path]) -> None:
    content = saved(trained["folder"], "best")  # opened with weights_only=True
    assert content["hyper_parameters"]["spec"]["classes"] == CLASSES
    assert "num_classes" not in content["hyper_parameters"] or content["hyper_parameters"]["num_classes"] is None
    first, second = (
        ImageClassifier.load_from_checkpoint(
            trained["folder"] / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True
        )
        for _ in range(2)
    )
    assert first.class_names == CLASSES
    own = ImageClassifier(TINY, 3, backbone_args={"layer_scale_init_value": 0.5})
    own.load_state_dict(content["state_dict"])
    x: Tensor = torch.randn(2, 3, 32, 32)
    assert_close(first.eval()(x), own.eval()(x), rtol=0, atol=0)
    assert_close(second.eval()(x), own(x), rtol=0, atol=0)


def test_module_backbone_trains_and_its_checkpoint_loads(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return timm.create_model(TINY, num_classes=3)

    data = DataModule(batch_size=2, num_workers=0)
    data.train_set = TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, limit_val_batches=0, **quiet)
    trainer.fit(task := ImageClassifier(net(), 3), datamodule=data)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "own.ckpt", backbone=net(), weights_only=True)
    x = torch.randn(1, 3, 32, 32)
    assert_close(again.eval()(x), task.eval()(x), rtol=0, atol=0)


def test_training_learns_the_photos(trained: dict[str, Path]) -> None:
    assert max(metric(trained["folder"], "val_acc")) == 1.0
    losses = metric(trained["folder"], "train_loss")
    assert losses[-1] < 0.7 * losses[0]


def test_early_stopping_by_a_word(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = add_callbacks(monkeypatch)
    config = write_config(tmp_path / "photos.yaml", photos, **PLAIN)
    words = ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val_loss"]
    words += ["--trainer.callbacks.min_delta", "100", "--trainer.callbacks.patience", "1"]
    command("fit", config, tmp_path, *words, "--trainer.max_epochs", "5")
    assert trainers[0].current_epoch == 2
