"""What ``lightning predict`` and ``task.predict`` give: classes, formats, embeddings, errors; and how they stream."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from training.small_runs import CLASSES, QUIET, add_callbacks, command, runs, table, write_photos

from core.cli import main
from core.data.samples import Samples
from core.errors import InputError
from core.training import PredictionWriter
from core.training.answers import Answer
from core.training.callbacks import ProgressLine
from vision import ImageClassifier, ImageFolder

SILENT: dict[str, Any] = {
    **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
    **{"enable_model_summary": False},
}
CLASS_COLUMNS = ["class", "probability", "class_2", "probability_2", "class_3", "probability_3"]


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """A folder of six images and a broken one, the second by name."""
    folder = write_photos(tmp_path / "some", test=2) / "test"
    (folder / CLASSES[0] / "0b.png").write_bytes(b"no image")
    return folder


def _predict(trained: dict[str, Path], out: Path, *words: str) -> None:
    best = str(trained["folder"] / "checkpoints" / "best.ckpt")
    command("predict", trained["config"], out, "--ckpt_path", best, *words)


def _task(trained: dict[str, Path]) -> ImageClassifier:
    file = trained["folder"] / "checkpoints" / "best.ckpt"
    return ImageClassifier.load_from_checkpoint(file, map_location="cpu").eval()


# What a row holds


def test_rows_hold_the_top_classes_and_all_probabilities(trained: dict[str, Path], some: Path, tmp_path: Path) -> None:
    words = ["--data.predict_path", str(some), "--predict.top_k", "2", "--predict.all", "true"]
    _predict(trained, tmp_path / "out", *words)
    rows = table(runs(tmp_path / "out")[0] / "predictions.csv")
    assert list(rows[0]) == ["file", *CLASS_COLUMNS[:4], *[f"p_{name}" for name in CLASSES], "error"]
    for row in rows[:1] + rows[2:]:
        p = {name: float(row[f"p_{name}"]) for name in CLASSES}
        assert sum(p.values()) == pytest.approx(1, abs=1e-6)
        first, second, _ = sorted(CLASSES, key=p.__getitem__, reverse=True)
        assert (row["class"], row["class_2"]) == (first, second)
        assert (float(row["probability"]), float(row["probability_2"])) == (p[first], p[second])

    in_python = _task(trained).predict(some, top_k=2, all=True)
    assert [list(row) for row in in_python] == [list(rows[0])] * 7
    for row, expected in zip(in_python, rows, strict=True):
        assert row["error"] == (expected["error"] or None)
        assert row["class"] == (expected["class"] or None)
        if row["class"]:
            assert row["p_sea"] == pytest.approx(float(expected["p_sea"]), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_of_many_exclusive_classes_add_up_to_one(dtype: torch.dtype) -> None:
    task = ImageClassifier("test_unireplknet", num_classes=1000).eval().to(dtype)
    with torch.no_grad():
        task.backbone.get_classifier().weight.mul_(20)
    for row in task.predict([torch.rand(3, 40, 40) for _ in range(3)], all=True):
        p = [row[f"p_{i}"] for i in range(1000)]
        assert sum(p) == pytest.approx(1, abs=1e-5)
        assert 0 < min(p) < 1e-5  # small ones are not rounded to 0
        assert row["probability"] == max(p)


def test_with_two_classes_a_row_holds_two() -> None:
    (row,) = ImageClassifier("test_unireplknet", num_classes=2).eval().predict(torch.rand(3, 40, 40))
    assert list(row) == ["file", *CLASS_COLUMNS[:4], "error"]


# Formats


def test_formats_hold_the_same_rows(trained: dict[str, Path], some: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    names = ("a.csv", "a.jsonl", "a.parquet")
    for name in names:
        _predict(trained, tmp_path / "out", "--data.predict_path", str(some), "--predict.output", str(tmp_path / name))
    from_csv = [
        {key: float(value) if key.startswith("prob") and value else value or None for key, value in row.items()}
        for row in table(tmp_path / "a.csv")
    ]
    from_json = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    from_parquet = parquet.read_table(tmp_path / "a.parquet")
    assert len(from_csv) == 7
    assert from_json == from_csv == from_parquet.to_pylist()
    assert [list(row) for row in from_json] == [["file", *CLASS_COLUMNS, "error"]] * 7
    assert str(from_parquet.schema.field("probability").type) == "double"
    assert not (runs(tmp_path / "out")[0] / "predictions.csv").exists()


def test_first_files_may_be_the_broken_ones(trained: dict[str, Path], some: Path, tmp_path: Path) -> None:
    (some / CLASSES[0] / "0.png").write_bytes(b"no image")
    words = [
        "--data.predict_path",
        str(some),
        "--data.batch_size",
        "1",
        "--predict.embeddings",
        str(tmp_path / "e.npy"),
    ]
    _predict(trained, tmp_path / "out", *words)
    rows = table(runs(tmp_path / "out")[0] / "predictions.csv")
    assert [bool(row["error"]) for row in rows] == [True, True, *[False] * 5]
    assert list(rows[0]) == ["file", *CLASS_COLUMNS, "error"]
    assert np.isnan(np.load(tmp_path / "e.npy")).any(axis=1).tolist() == [True, True, *[False] * 5]


# Embeddings


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet"])
def test_row_of_embeddings_is_that_of_the_file(
    suffix: str, trained: dict[str, Path], some: Path, tmp_path: Path
) -> None:
    file = tmp_path / f"e.{suffix}"
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    words = ["--data.predict_path", str(some), "--data.batch_size", "2", "--predict.embeddings", str(file)]
    _predict(trained, tmp_path / "out", *words)
    files = sorted(str(p) for p in some.rglob("*.*"))
    if suffix == "npy":
        vectors = np.load(file)
    elif suffix == "npz":
        with np.load(file) as content:
            vectors = content["embedding"]
            assert content["file"].tolist() == files
    else:
        from pyarrow import parquet

        columns = parquet.read_table(file).to_pydict()
        assert columns["file"] == files
        vectors = np.array(columns["embedding"])

    task = _task(trained)
    good = [file for file in files if not file.endswith("0b.png")]
    expected = task.embed(good)
    assert vectors.shape == (7, task.backbone.num_features)
    assert np.isnan(vectors[1]).all()
    np.testing.assert_allclose(np.delete(vectors, 1, axis=0), expected.numpy(), atol=1e-4)
    assert [row["file"] for row in table(runs(tmp_path / "out")[0] / "predictions.csv")] == files


def test_embeddings_are_those_of_timm(trained: dict[str, Path], some: Path) -> None:
    task: Any = _task(trained)
    pixels = torch.rand(3, 40, 40)
    with torch.no_grad():
        data = task.prediction_data(batch_size=1, num_workers=0)
        data.use_sources(pixels)
        raw, _ = next(iter(data.predict_dataloader()))
        maps = task.to_maps(raw)
        expected = task.backbone.forward_head(task.backbone.forward_features(maps), pre_logits=True)
    torch.testing.assert_close(task.embed(pixels), expected)
    torch.testing.assert_close(task.backbone.get_classifier()(expected), task(raw))
    with pytest.raises(InputError, match=r"0b\.png cannot be decoded"):
        task.embed(some)
    assert task.predict(pixels)[0]["class"]  # the options of embed are gone


# Streaming


class _Counted(Dataset[Any]):
    """Samples that are made when they are read."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return torch.full((3, 8, 8), index % 7 / 7), f"file {index:04d}"


class _Many(ImageFolder):
    def find(self, path: Path) -> list[Path]:
        return [Path(str(i)) for i in range(600)]

    def dataset(self, samples: Samples, split: Any) -> Any:
        return _Counted(samples)


class _Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean(dim=(2, 3)))


def test_rows_are_written_as_they_come_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 600 answers in 60 batches, those of two batches are alive at most."""
    alive: Any = weakref.WeakSet()
    most, sizes = [], []

    class _Tracked(Answer):
        __hash__ = object.__hash__

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            alive.add(self)

    class _Watch(Callback):
        def on_predict_batch_end(self, *args: Any) -> None:
            gc.collect()
            most.append(len(alive))
            sizes.append(sum(file.stat().st_size for file in tmp_path.glob(".predictions.csv.*.part")))

    monkeypatch.setattr("core.training.task.Answer", _Tracked)
    data = _Many(predict_path="any", batch_size=10, num_workers=0, size=8)
    trainer = Trainer(callbacks=[PredictionWriter(), _Watch()], default_root_dir=tmp_path, **SILENT)
    trainer.predict(ImageClassifier(_Mean(), num_classes=3), data, return_predictions=False)
    assert len(most) == 60
    assert max(most) <= 20
    assert sizes[-1] > sizes[30] > 0
    rows = table(tmp_path / "predictions.csv")
    assert [row["file"] for row in rows] == [f"file {i:04d}" for i in range(600)]
    assert not list(tmp_path.glob(".*"))


def test_progress_counts_files(tmp_path: Path) -> None:
    seen: list[tuple[float, float | None]] = []
    bar = ProgressLine()

    class _Watch(Callback):
        def on_predict_batch_end(self, *args: Any) -> None:
            assert bar.progress is not None
            seen.extend((task.completed, task.total) for task in bar.progress.tasks)

    data = _Many(predict_path="any", batch_size=250, num_workers=0, size=8)
    trainer = Trainer(callbacks=[bar, _Watch()], default_root_dir=tmp_path, **SILENT | {"enable_progress_bar": True})
    trainer.predict(ImageClassifier(_Mean(), num_classes=3), data, return_predictions=False)
    assert seen == [(250, 600), (500, 600), (600, 600)]


def test_command_does_not_collect_predictions(trained: dict[str, Path], some: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    class _Watch(Callback):
        def on_predict_end(self, trainer: Trainer, *args: Any) -> None:
            seen.append(trainer.predict_loop._predictions)

    with pytest.MonkeyPatch.context() as patch:
        add_callbacks(patch, _Watch())
        _predict(trained, tmp_path / "out", "--data.predict_path", str(some))
    assert seen == [[]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError])
def test_stopped_prediction_leaves_the_old_files(
    error: Any, trained: dict[str, Path], some: Path, tmp_path: Path
) -> None:
    class _Stop(Callback):
        def on_predict_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                raise error("stopped")

    here = tmp_path / "here"
    here.mkdir()
    for name in ("a.csv", "e.npz"):
        (here / name).write_text("old")
    words = ["--predict.output", str(here / "a.csv"), "--predict.embeddings", str(here / "e.npz")]
    with pytest.MonkeyPatch.context() as patch:
        add_callbacks(patch, _Stop())
        with pytest.raises(SystemExit) as stopped:
            _predict(trained, tmp_path / "out", "--data.predict_path", str(some), "--data.batch_size", "2", *words)
    assert stopped.value.code == (130 if error is KeyboardInterrupt else "lightning: error: stopped")
    assert sorted(file.name for file in here.iterdir()) == ["a.csv", "e.npz"]
    assert {file.read_text() for file in here.iterdir()} == {"old"}


@pytest.mark.slow
def test_signal_leaves_nothing_half_written(trained: dict[str, Path], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3_000):
        Image.new("RGB", (300, 300), (i % 256, 90, 90)).save(photos / f"{i:04d}.png", compress_level=0)
    line = [sys.executable, "-m", "core.cli", "predict", "-c", str(trained["config"]), *QUIET, "--data.batch_size", "1"]
    line += ["--ckpt_path", str(trained["folder"]), "--data.predict_path", str(photos)]
    line += ["--predict.output", str(tmp_path / "here" / "a.csv"), "--trainer.default_root_dir", str(tmp_path / "out")]
    process = subprocess.Popen(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    try:
        started = time.monotonic()
        while not list(tmp_path.glob("here/.a.csv*")) and time.monotonic() - started < 120:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert not list((tmp_path / "here").iterdir())


# Bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--predict.output", "a.txt"],
            r"--predict\.output a\.txt has the ending '\.txt'; expected .* \.csv, \.jsonl, \.p",
        ),
        (["--predict.output", "a"], r"--predict\.output a has no ending; expected"),
        (["--predict.embeddings", "e.csv"], r"--predict\.embeddings e\.csv has the ending '\.csv'; expected .* \.npy"),
        (
            ["--predict.output", "a.parquet", "--predict.embeddings", "a.parquet"],
            r"are both a\.parquet; name two",
        ),
        (["--predict.top_k", "0"], r"top_k=0; expected a number of classes, 1 or more"),
        (["--predict.top_k", "4"], r"top_k=4, and the model has 3 classes; expected 1 to 3"),
        (["--predict.windows", "true"], r"ImageClassifier reads samples without a time axis; leave windows"),
        (["--predict.threshold", "0.5"], r"ImageClassifier reads samples without a time axis; leave windows"),
        (["--predict.threshold", "1.5"], r"threshold=1\.5; expected a probability from 0 to less than 1"),
    ],
)
def test_bad_options_are_refused_before_the_model_runs(
    words: list[str], message: str, trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*args: Any) -> Any:
        raise AssertionError("the model ran")

    monkeypatch.setattr(ImageClassifier, "forward", forward)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^lightning: error: .*{message}"):
        _predict(trained, tmp_path / "out", *words)
    assert not runs(tmp_path / "out")
    assert not list(tmp_path.glob("*.*"))


def test_parquet_without_its_package_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.io.writers.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs pyarrow; type: pip install pyarrow"):
        PredictionWriter(output="a.parquet")


def test_options_of_python_are_refused_alike() -> None:
    task = ImageClassifier("test_unireplknet", num_classes=3).eval()
    for options, message in (({"top_k": 4}, "has 3 classes"), ({"windows": True}, "without a time axis")):
        with pytest.raises(InputError, match=message):
            task.predict(torch.rand(3, 40, 40), **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="timm's methods forward_features and forward_head, which _Mean lacks"):
        ImageClassifier(_Mean(), num_classes=3).embed(torch.rand(3, 40, 40))


def test_options_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    shown = capsys.readouterr().out
    for option in ("output", "top_k", "all", "embeddings", "windows", "threshold"):
        assert f"--predict.{option} " in shown
    assert shown.index("--predict.output") < shown.index("--trainer.accelerator")
