"""Small image sets, their configuration and short runs, shared by the tests of training, command and vision."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from core.cli import main
from core.training.lightning_cli import LarKitCLI

CLASSES = ["brick", "leaf", "sea"]
COLORS = [(200, 60, 50), (50, 180, 60), (50, 70, 210)]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
PLAIN = {"scale": [1.0, 1.0], "hflip": 0.0, "auto_augment": None}
"""Data settings under which a square training image stays as it is."""


def picture(label: int, number: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Rows, columns or checks in the color of the class, with noise and a phase of its own."""
    y, x = np.mgrid[: size[1], : size[0]] // 4 + number
    pattern = [y, x, x + y][label % 3] % 2
    noise = np.random.default_rng(97 * label + number).integers(-30, 31, (size[1], size[0], 3))
    pixels = np.array(COLORS[label % 3]) * (0.5 + 0.5 * pattern[..., None]) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_photos(root: Path, classes: list[str] = CLASSES, **splits: int) -> Path:
    """``root/<split>/<class>/<n>.jpg`` and ``.png``, as many of each class as ``splits`` says."""
    for split, count in splits.items():
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                number = i + 100 * list(splits).index(split)
                picture(label, number).save(folder / f"{i}.{'jpg' if i % 2 else 'png'}", quality=95)
    return root


def write_config(path: Path, root: Path, **data: Any) -> Path:
    """A configuration for class folders: a tiny net, small maps, and the data settings given."""
    data = {"root": str(root), "size": 32, "batch_size": 6, "num_workers": 0} | data
    model = {"backbone": "test_unireplknet", "backbone_args": {"layer_scale_init_value": 0.5}, "lr": 0.02}
    content = {
        "model": {"class_path": "ImageClassifier", "init_args": model},
        "data": {"class_path": "ImageFolder", "init_args": data},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def command(verb: str, config: Path, out: Path, *words: str) -> None:
    """One verb in this process and one thread, quietly, with its run folders below ``out``."""
    torch.set_num_threads(1)  # fixtures of a session run before those of a test
    main([verb, "-c", str(config), *QUIET, "--trainer.default_root_dir", str(out), *words])


def runs(out: Path) -> list[Path]:
    """The run folders below ``out``, oldest first."""
    return sorted((out / "lightning_logs" / "ImageClassifier").glob("version_*"))


def saved(run: Path, name: str = "last") -> dict[str, Any]:
    """A checkpoint of a run."""
    content: dict[str, Any] = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def metric(run: Path, name: str) -> list[float]:
    """The values of one metric in the order they were logged."""
    return [float(row[name]) for row in table(run / "metrics.csv") if row.get(name)]


def add_callbacks(monkeypatch: Any, *added: Callback) -> list[Trainer]:
    """Give the command's trainers callbacks that no configuration names; the list will hold the trainers."""
    original, trainers = LarKitCLI._instantiate_trainer, []

    def instantiate(self: LarKitCLI, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        trainers.append(original(self, config, [*callbacks, *added]))
        return trainers[-1]

    monkeypatch.setattr(LarKitCLI, "_instantiate_trainer", instantiate)
    return trainers


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Runs draw nothing and write no report, which takes most of the time of a run as short as these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.training.callbacks.takes_page", lambda _: False)
        for name in ("classification", "callbacks", "plots"):
            patch.setattr(f"core.training.{name}.draw_figure", lambda *_: None)
        yield


class Interrupt(Callback):
    """Ctrl-C at the start of an epoch, or after its first batch."""

    def __init__(self, epoch: int, *, after_a_batch: bool = False) -> None:
        self.epoch, self.after_a_batch = epoch, after_a_batch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch and not self.after_a_batch:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.current_epoch == self.epoch and self.after_a_batch:
            raise KeyboardInterrupt


def interrupted_and_resumed(config: Path, out: Path, stop: Interrupt, *words: str) -> None:
    """A run that ends with Ctrl-C, and one that goes on from its last checkpoint, below ``out``."""
    with pytest.MonkeyPatch.context() as patch:
        add_callbacks(patch, stop)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            command("fit", config, out, *words)
    command("fit", config, out, *words, "--ckpt_path", "last")
