"""What the terminal shows: the model before a run, the progress line, the result at its end, and the help."""

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torchmetrics import MeanMetric
from training.small_runs import PLAIN, QUIET, metric, runs, write_config

from core.cli import main
from core.training.callbacks import LearningCurves, ModelTable, ProgressLine, RunCheckpoint, run_summary
from timeseries.task import SeriesTask


def _shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code in (None, 0)
    return capsys.readouterr().out.splitlines()


# The end of a run


def test_end_of_a_run_is_its_result_and_the_next_commands(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "c.yaml", photos, **PLAIN)
    main(["fit", "-c", str(config), *QUIET, "--trainer.max_epochs", "3"])
    (run,) = runs(tmp_path)
    printed = capsys.readouterr().out

    accuracies = metric(run, "val_acc")
    best = max(accuracies)
    folder = "lightning_logs/ImageClassifier/version_0"
    lines = printed[printed.index("Best epoch") :].splitlines()
    assert lines == [
        f"Best epoch: {accuracies.index(best)} (of 0 to 2), val_acc {best:.4g}",
        f"Run folder: {folder}",
        "  confusion_matrix.png, examples.png, learning_curves.png, metrics.csv, report.html",
        "Next:",
        f"  lightning test --ckpt_path {folder}",
        f"  lightning predict --ckpt_path {folder} --data.predict_path FILE_OR_FOLDER",
        f"  lightning export --ckpt_path {folder}",
    ]

    # they are commands that work as they stand
    main([*lines[4].split()[1:], "--trainer.enable_progress_bar", "false"])
    assert len(metric(runs(tmp_path)[1], "test_acc")) == 1
    words = lines[5].replace("FILE_OR_FOLDER", str(photos / "val" / "sea")).split()[1:]
    main([*words, "--trainer.enable_progress_bar", "false"])
    assert (runs(tmp_path)[2] / "predictions.csv").is_file()


class _Baselines:
    """A trainer whose run has logged a metric and two baselines of it."""

    loggers: tuple[Any, ...] = ()
    lightning_module = SeriesTask

    def __init__(self) -> None:
        best = RunCheckpoint(monitor="val_mse", mode="min")
        curves = LearningCurves()
        curves.history = {
            "val_mse": [(0, 0.5), (1, 0.25), (2, 0.4)],
            "val_mse_last": [(0, 0.9), (1, 0.91), (2, 0.92)],
            "val_mse_seasonal": [(0, 0.7), (1, 0.71), (2, 0.72)],
            "val_mse_50": [(0, 0.6), (1, 0.5), (2, 0.6)],  # as the map of a detector at another threshold
            "val_mae": [(0, 0.6), (1, 0.5), (2, 0.6)],
        }
        self.checkpoint_callbacks = [best]
        self.callbacks = [curves, best]


def test_baselines_stand_beside_the_best_epoch() -> None:
    trainer: Any = _Baselines()
    assert run_summary(trainer).splitlines() == [
        "Best epoch: 1 (of 0 to 2), val_mse 0.25",
        "Baselines: val_mse_last 0.91, val_mse_seasonal 0.71",
    ]


def test_baselines_that_are_as_good_are_named() -> None:
    trainer: Any = _Baselines()
    curves = trainer.callbacks[0]
    curves.history["val_mse_last"] = [(0, 0.9), (1, 0.25), (2, 0.92)]
    assert run_summary(trainer).splitlines()[2] == (
        "The model is no better than last on validation: for such series a simple forecast is enough"
    )


@pytest.mark.parametrize("words", [["--trainer.fast_dev_run", "1"], ["--trainer.barebones", "true"]])
def test_trial_runs_have_no_result(
    words: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "c.yaml", photos)
    main(["fit", "-c", str(config), "--trainer.default_root_dir", str(tmp_path), *words])
    assert "Next:" not in capsys.readouterr().out


# During a run


class _Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.loss = MeanMetric()
        self.scores = nn.ModuleDict({"val": MeanMetric()})
        self.net.bias.requires_grad_(False)


def test_table_of_the_model_leaves_out_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    ModelTable().on_fit_start(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), _Model())
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  net  Linear             15 parameters", "  3 of 15 parameters are frozen"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], True),
        (["--trainer.enable_model_summary", "false"], False),
        (["--trainer.callbacks+", "ModelSummary"], False),
    ],
)
def test_table_is_shown_unless_another_or_none_is_chosen(
    words: list[str], shown: bool, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "c.yaml", photos)
    words = [*words, "--trainer.fast_dev_run", "1", "--trainer.enable_progress_bar", "false"]
    main(["fit", "-c", str(config), *words])
    printed = capsys.readouterr().out
    assert bool(re.search(r"^  backbone +UniRepLKNet +[\d,]+ parameters$", printed, re.MULTILINE)) == shown
    assert "FLOPs" not in printed


@pytest.mark.parametrize("names", [("train_loss", "val_acc", "val_acc5"), ("train_loss", "val_mse", "val_mae")])
def test_progress_line_fits_a_hundred_columns(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    line = ProgressLine()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=300)
    values = {name: torch.tensor(1.2345) for name in names}
    monkeypatch.setattr(type(trainer), "progress_bar_metrics", values)
    metrics = line.get_metrics(trainer, _Model())
    assert list(metrics) == list(names)
    text = " ".join(f"{name}: {value:.3f}" for name, value in metrics.items())

    shown = Console(file=io.StringIO(), width=100)
    progress = Progress(*line.configure_columns(trainer), text, console=shown)
    progress.add_task("Epoch 299/299", total=1251, completed=1250)
    shown.print(progress.get_renderable())
    (printed,) = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "Epoch 299/299" in printed
    assert "1250/1251" in printed
    assert text in printed


# Help


@pytest.mark.parametrize(
    ("option", "name", "first", "longest"),
    [
        ("--model.help", "ImageClassifier", ["--model.backbone", "--model.num_classes"], 120),
        ("--model.help", "vision.ImageClassifier", ["--model.backbone", "--model.num_classes"], 120),
        ("--data.help", "ImageFolder", ["--data.root"], 120),
        ("--model.help", "ForecastTask", ["--model.backbone"], 140),
    ],
)
def test_help_of_a_class_is_short_and_lists_no_modules(
    option: str, name: str, first: list[str], longest: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _shown(["fit", option, name], capsys)
    assert len(lines) < longest
    assert "known subclasses" not in " ".join(" ".join(lines).split())
    options = [line.split()[0] for line in lines if line.startswith("  --")]
    assert options[: len(first)] == first


@pytest.mark.parametrize("verb", ["fit", "predict", "export"])
def test_help_of_a_verb_begins_with_what_people_need(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _shown([verb, "--help"], capsys)
    assert lines[0] == f"usage: lightning {verb} -c FILE [-c FILE ...] [--key value ...]"
    options = [line.split()[0].rstrip(",") for line in lines if line.startswith("  -")]
    places = [options.index(name) for name in ("-c", "--ckpt_path", "--data", "--model", "--trainer.max_epochs")]
    assert places == sorted(places)
    assert places[-2] < 16


def test_warnings_of_this_package_are_one_line(photos: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", photos)
    words = ["fit", "-c", str(config), "--trainer.max_epochs", "1", "--trainer.default_root_dir", str(tmp_path)]
    ended = subprocess.run([sys.executable, "-m", "core.cli", *words], capture_output=True, text=True, check=True)
    (line,) = [line for line in ended.stderr.splitlines() if "may not learn" in line]
    assert line.startswith("lightning: warning: This run may not learn: the run has 3 optimizer steps")
    assert "rank_zero_warn" not in ended.stderr
