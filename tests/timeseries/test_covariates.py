"""Covariates: calendar, holidays and known columns, from the file to the forecast."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from lightning import Trainer
from small_series import TINY, series_runs, waves, write_series, write_series_config
from torch.testing import assert_close
from training.small_runs import command, metric, table

from core.errors import InputError
from timeseries import CSVSeries, ForecastTask, SeriesSpec
from timeseries.covariates import Covariates

LENGTHS = {"seq_len": 24, "pred_len": 6}


def _driven(path: Path, rows: int = 400, ahead: int = 6) -> Path:
    """A channel that follows a known column at once, and has nothing else to foresee it; ``ahead`` rows lack it."""
    generator = np.random.default_rng(0)
    known = generator.standard_normal(rows + ahead).round(4)
    table = pd.DataFrame({"date": pd.date_range("2020-01-01", periods=rows + ahead, freq="h")})
    table["a"] = 50 + 5 * known + 0.5 * generator.standard_normal(rows + ahead)
    table["warm"] = 20 + 3 * known
    table.loc[rows:, "a"] = np.nan
    table.to_csv(path, index=False)
    return path


def test_calendar_by_hand() -> None:
    times = pd.DatetimeIndex(["2024-01-01 06:00", "2024-07-16 18:30"])  # a Monday, a Tuesday
    found = Covariates(calendar=("hour", "weekday", "month")).features(times)
    angles = np.array([[6 / 24, 0, 0], [18.5 / 24, 1 / 7, (6 + 15 / 31) / 12]]) * 2 * np.pi
    expected = np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(2, 6)
    assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_holidays_of_a_country_and_of_a_part_of_it() -> None:
    pytest.importorskip("holidays")
    times = pd.DatetimeIndex(["2024-12-24 23:00", "2024-12-25 00:00", "2025-01-06 12:00"])  # Epiphany
    assert Covariates(holidays="DE").features(times).tolist() == [[0], [1], [0]]
    assert Covariates(holidays="DE-BY").features(times).tolist() == [[0], [1], [1]]


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"calendar": ["hours"]}, "calendar has hours; expected some of hour, weekday, month"),
        ({"calendar": ["hour", "hour"]}, "give each name once"),
        ({"known": ["x", "x"]}, "give each name once"),
        ({"holidays": "XX"}, "holidays XX is no country"),
        ({"holidays": "DE-QQ"}, "holidays DE-QQ is no country .*for DE a subdivision of BB, BE"),
        ({"known": ["cold"]}, r"has no column cold for --data\.known; it has a, warm"),
        ({"known": ["warm"], "channels": ["a", "warm"]}, "warm is in --data.channels and in --data.known"),
    ],
)
def test_covariates_that_do_not_exist(kwargs: dict[str, Any], text: str, tmp_path: Path) -> None:
    pytest.importorskip("holidays")
    with pytest.raises(InputError, match=text):
        CSVSeries(str(_driven(tmp_path / "a.csv")), **LENGTHS, **kwargs).setup("fit")


@pytest.mark.parametrize(
    ("kwargs", "freq", "text"),
    [
        ({"calendar": ["hour"]}, "D", "hour has the same value in all training rows of the series"),
        ({"holidays": "DE"}, "W", "steps longer than a day, and --data.holidays DE tells days apart"),
    ],
)
def test_covariates_that_the_steps_do_not_have(kwargs: dict[str, Any], freq: str, text: str, tmp_path: Path) -> None:
    pytest.importorskip("holidays")
    path = write_series(tmp_path / "a.csv", waves(200), freq=freq)
    with pytest.raises(InputError, match=text):
        CSVSeries(str(path), **LENGTHS, **kwargs).setup("fit")


def test_windows_hold_the_covariates_of_history_and_horizon(tmp_path: Path) -> None:
    file = _driven(tmp_path / "a.csv")
    data = CSVSeries(str(file), **LENGTHS, known=["warm"], calendar=["hour"], split=(280, 40, 80))
    data.setup("fit")
    rows = pd.read_csv(file)
    (history, covariates), horizon = data.test_set[3]  # type: ignore[index]
    first = 320 - 24 + 3
    assert_close(history[:, 0], torch.tensor(rows["a"][first : first + 24].to_numpy(), dtype=torch.float32))
    assert_close(covariates[:, 0], torch.tensor(rows["warm"][first : first + 30].to_numpy(), dtype=torch.float32))
    assert_close(covariates[:, 2], torch.tensor(np.cos(2 * np.pi * np.arange(first, first + 30) / 24)).float())
    assert horizon.shape == (6, 1)
    spec = data.spec()
    assert spec.known_mean == pytest.approx([rows["warm"][:280].mean()], rel=1e-5)
    assert SeriesSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("kwargs", [{}, {"layout": "embed", "embed_dim": 8}, {"group": 2}, {"normalize": "revin"}])
def test_covariates_reach_every_step_and_every_parameter_learns(kwargs: dict[str, Any]) -> None:
    spec = SeriesSpec(channels=("a", "b"), **LENGTHS, period=12, known=("x",), known_mean=(5.0,), known_std=(2.0,))
    task = ForecastTask(**TINY, spec=spec, enlarge=2, dropout=0.0, **kwargs).train()
    x, covariates = torch.randn(3, 24, 2), torch.randn(3, 30, 1)
    torch.nn.init.normal_(task.head.projection.weight)
    torch.nn.init.normal_(task.feature_map.effects[2].weight)  # type: ignore[index]
    task(x, covariates).square().mean().backward()
    assert [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None] == []

    task.eval()
    for step in (0, 23, 24, 29):
        other = covariates.clone()
        other[:, step] += 1
        assert not torch.allclose(task(x, other), task(x, covariates))


def test_effect_of_covariates_by_hand() -> None:
    """What the covariates explain is taken out of the history and put back at the steps of the horizon."""
    spec = SeriesSpec(channels=("a",), **LENGTHS, known=("x",), mean=(1.0,), std=(2.0,))
    task = ForecastTask(**TINY, spec=spec, normalize="last").eval()
    assert task.feature_map.effects is not None
    covariates = torch.randn(2, 30, 1)
    torch.nn.init.normal_(task.feature_map.effects[2].weight)
    with torch.no_grad():
        effects = 2 * task.feature_map.effects(covariates)  # in the units of the file
        x = 7 + effects[:, :24]
        assert_close(task(x, covariates), 7 + effects[:, 24:])  # training begins with the last value


def test_covariates_that_do_not_fit_the_model() -> None:
    spec = SeriesSpec(channels=("a",), **LENGTHS, known=("x",))
    task = ForecastTask(**TINY, spec=spec)
    with pytest.raises(InputError, match=r"covariates are none; the model was built for \(B, 30, 1\)"):
        task(torch.randn(2, 24, 1))
    with pytest.raises(InputError, match=r"covariates are \(2, 24, 1\)"):
        task(torch.randn(2, 24, 1), torch.randn(2, 24, 1))
    with pytest.raises(InputError, match="built for none"):
        ForecastTask(**TINY, channels=1, **LENGTHS)(torch.randn(2, 24, 1), torch.randn(2, 30, 1))
    with pytest.raises(InputError, match=r"built with known=\[x\], the data have \[\]; set --data\.known '\[x\]'"):
        task.use_spec(SeriesSpec(channels=("a",), **LENGTHS))


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run whose channel follows a known column."""
    base = tmp_path_factory.mktemp("driven")
    file = _driven(base / "a.csv")
    model = {"lr": 0.02, "normalize": "mean"}
    config = write_series_config(base / "c.yaml", file, model=model, **LENGTHS, known=["warm"], period=6)
    command("fit", config, base, "--trainer.max_epochs", "8")
    return {"base": base, "file": file, "config": config, "run": series_runs(base)[0]}


def test_a_known_column_is_used_for_the_horizon(driven: dict[str, Path]) -> None:
    """The history says nothing of the horizon, so that no forecast without the column does better than 1."""
    assert min(metric(driven["run"], "val_mse_linear")) > 0.8
    assert min(metric(driven["run"], "val_mse")) < 0.4


def test_later_rows_of_the_file_hold_the_horizon(driven: dict[str, Path], tmp_path: Path) -> None:
    command("predict", driven["config"], tmp_path, "--ckpt_path", str(driven["run"]))
    rows = table(series_runs(tmp_path)[0] / "predictions.csv")
    assert list(rows[0]) == ["date", "a"]
    assert [row["date"] for row in rows] == [str(time) for time in pd.read_csv(driven["file"])["date"][-6:]]
    warm = pd.read_csv(driven["file"])["warm"].to_numpy()[-6:]
    found = np.array([float(row["a"]) for row in rows])
    assert np.corrcoef(found, warm)[0, 1] > 0.8

    task = ForecastTask.load_from_checkpoint(driven["run"] / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    again = task.predict(driven["file"])
    assert [row["a"] for row in again] == pytest.approx(found.tolist(), rel=1e-5)
    with pytest.raises(InputError, match=r"reads warm, which an array does not hold; give a file, or call task\("):
        task.predict(np.zeros((24, 1)))


def test_horizon_beyond_the_covariates(driven: dict[str, Path], tmp_path: Path) -> None:
    short = _driven(tmp_path / "short.csv", rows=60, ahead=2)
    words = ["--ckpt_path", str(driven["run"]), "--data.predict_path", str(short)]
    text = (
        r"^lightning: error: .*short\.csv: the horizon of 6 steps ends at 2020-01-03 17:00:00, beyond the covariates "
        r"warm, which end at 2020-01-03 13:00:00; append rows"
    )
    with pytest.raises(SystemExit, match=text):
        command("predict", driven["config"], tmp_path, *words)
    assert not series_runs(tmp_path)


def test_training_needs_no_later_rows(tmp_path: Path) -> None:
    data = CSVSeries(str(_driven(tmp_path / "a.csv", ahead=0)), **LENGTHS, known=["warm"], num_workers=0)
    data.setup("fit")
    assert len(next(iter(data.train_dataloader()))[0]) == 2
    with pytest.raises(InputError, match="beyond the covariates"):
        data.predict_dataloader()


def test_export_takes_history_and_covariates(driven: dict[str, Path], tmp_path: Path) -> None:
    words = ["--ckpt_path", str(driven["run"]), "--format", "onnx", "--output", str(tmp_path)]
    command("export", driven["config"], tmp_path, *words)
    (file,) = tmp_path.glob("*.onnx")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    history, covariates = torch.randn(5, 24, 1) + 50, torch.randn(5, 30, 1) + 20
    names = [entry.name for entry in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (history.numpy(), covariates.numpy()), strict=True)))
    task = ForecastTask.load_from_checkpoint(driven["run"] / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    with torch.no_grad():
        assert_close(torch.from_numpy(found), task(history, covariates), rtol=1e-4, atol=1e-3)


def test_calendar_alone_needs_no_later_rows(tmp_path: Path) -> None:
    file = write_series(tmp_path / "a.csv", waves(300))
    data = CSVSeries(str(file), **LENGTHS, calendar=["hour", "weekday"], num_workers=0)
    task = ForecastTask(**TINY, spec=data.spec())
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=1, limit_train_batches=2, accelerator="cpu", enable_progress_bar=False
    )
    trainer.fit(task, data)
    rows = task.predict(file)
    assert [row["date"] for row in rows] == [
        str(time) for time in pd.date_range("2020-01-13 12:00", periods=6, freq="h")
    ]
