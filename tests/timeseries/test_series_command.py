"""Training, evaluation, prediction, export and statistics of series through the command."""

import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image
from small_series import TINY, series_runs, waves, write_series, write_series_config
from torch.testing import assert_close
from training.small_runs import command, metric, saved, table

from core.analysis.models import open_model
from timeseries import CSVSeries, ForecastTask
from timeseries.baselines import fit_linear, linear_forecast


@pytest.fixture(scope="module")
def trained_series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that is only read: ``folder``, ``config``, ``series``, and ``out`` above."""
    base, environment = tmp_path_factory.mktemp("trained_series"), os.environ.copy()
    series = write_series(base / "series.csv", waves())
    config = write_series_config(base / "series.yaml", series)
    command("fit", config, base / "out")
    os.environ.clear()
    os.environ.update(environment)
    return {"folder": series_runs(base / "out")[0], "config": config, "series": series, "out": base / "out"}


def _best(trained: dict[str, Path]) -> list[str]:
    return ["--ckpt_path", str(trained["folder"] / "checkpoints" / "best.ckpt")]


def _model(trained: dict[str, Path]) -> ForecastTask:
    return ForecastTask.load_from_checkpoint(trained["folder"] / "checkpoints" / "best.ckpt", map_location="cpu").eval()


def test_run_learns_and_leaves_its_pictures(trained_series: dict[str, Path]) -> None:
    run = trained_series["folder"]
    assert metric(run, "val_mse")[-1] < 0.5 * metric(run, "val_mse_last")[-1]
    assert len(metric(run, "val_mae")) == 2
    assert min(metric(run, "val_mse")) == saved(run, "best")["callbacks"][_checkpoint(run)]["best_model_score"]
    for name in ("forecasts.png", "errors.png", "learning_curves.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 200
    assert saved(run, "best")["channel_names"] == ["a", "b"]


def _checkpoint(run: Path) -> str:
    return next(name for name in saved(run, "best")["callbacks"] if "val_mse" in name)


def test_metrics_of_model_and_baselines_equal_a_count_by_hand(trained_series: dict[str, Path], tmp_path: Path) -> None:
    command("test", trained_series["config"], tmp_path, *_best(trained_series), "--data.batch_size", "7")
    data, model = CSVSeries(str(trained_series["series"]), seq_len=48, pred_len=12), _model(trained_series)
    data.setup("test")
    rows = (data.read().values[:280] - data.mean) / data.std
    weight = fit_linear(rows, 48, 12)
    errors: dict[str, list[np.ndarray]] = {"": [], "_last": [], "_seasonal": [], "_linear": []}
    for i in range(len(data.test_set)):  # type: ignore[arg-type]
        x, y = data.test_set[i]  # type: ignore[index]
        with torch.no_grad():
            forecasts = {"": model(x[None])[0], "_last": x[-1].expand(12, -1), "_seasonal": x[-24:-12]}
        z = linear_forecast(((x - data.mean) / data.std)[None], weight)[0]
        forecasts["_linear"] = z * data.std + data.mean
        for name, forecast in forecasts.items():
            errors[name].append(((forecast - y) / data.std).numpy())
    (run,) = series_runs(tmp_path)
    assert len(errors[""]) == 80 - 12 + 1
    for name, values in errors.items():
        assert metric(run, f"test_mse{name}") == pytest.approx([np.square(values).mean()], rel=1e-3)
        assert metric(run, f"test_mae{name}") == pytest.approx([np.abs(values).mean()], rel=1e-3)
    assert (run / "errors.png").is_file()


def test_forecast_goes_on_after_the_last_row_in_the_units_of_the_file(
    trained_series: dict[str, Path], tmp_path: Path
) -> None:
    values = 10 * waves(60, seed=5)
    other = write_series(tmp_path / "other.csv", values, start="2024-02-28")
    words = [*_best(trained_series), "--data.path", "null", "--data.predict_path", str(other)]
    command("predict", trained_series["config"], tmp_path / "out", *words)
    (run,) = series_runs(tmp_path / "out")
    rows = table(run / "predictions.csv")
    dates = pd.date_range("2024-02-28", periods=72, freq="h")[60:]
    assert [row["date"] for row in rows] == [str(date) for date in dates]
    with torch.no_grad():
        expected = _model(trained_series)(torch.tensor(values[-48:], dtype=torch.float32)[None])[0]
    found = torch.tensor([[float(row["a"]), float(row["b"])] for row in rows])
    assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert (run / "forecasts.png").is_file()
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e9])
def test_forecasts_keep_seven_digits_in_any_unit(scale: float) -> None:
    exact = torch.tensor([[1.2345678, -0.0012345678], [scale, 0.0]]) * scale
    for quantiles in ((), (0.1, 0.9)):
        task = ForecastTask(**TINY, channels=1, seq_len=48, pred_len=2, quantiles=quantiles)
        columns = task._columns("a", exact if quantiles else exact[:, 0])
        assert list(columns) == (["a_q0.1", "a_q0.9"] if quantiles else ["a"])
        for values, truth in zip(columns.values(), exact.T.tolist(), strict=False):
            assert values == pytest.approx(truth, rel=5e-7, abs=0)
            assert values == [float(f"{value:.7g}") for value in values]


def test_without_a_file_the_series_itself_is_continued(trained_series: dict[str, Path], tmp_path: Path) -> None:
    command("predict", trained_series["config"], tmp_path, *_best(trained_series))
    rows = table(series_runs(tmp_path)[0] / "predictions.csv")
    assert list(rows[0]) == ["date", "a", "b"]
    assert rows[0]["date"] == str(pd.Timestamp("2020-01-01") + pd.Timedelta(hours=400))
    assert len(rows) == 12


@pytest.mark.parametrize(
    ("columns", "rows", "text"),
    [
        ("a,c", 60, "trained on the channels a, b, the data have a, c"),
        ("a", 60, r"the model has 2 channels and the data 1 \(a\); set --model\.channels 1"),
        ("a,b", 30, "has 30 rows; seq_len=48 rows are needed"),
    ],
)
def test_files_that_the_model_cannot_continue(
    columns: str, rows: int, text: str, trained_series: dict[str, Path], tmp_path: Path
) -> None:
    names = columns.split(",")
    path = write_series(tmp_path / "other.csv", waves(rows, len(names)))
    path.write_text(path.read_text().replace("date,a,b", f"date,{columns}"))
    words = [*_best(trained_series), "--data.predict_path", str(path)]
    with pytest.raises(SystemExit, match=rf"^lightning: error: .*{text}"):
        command("predict", trained_series["config"], tmp_path / "out", *words)
    assert not series_runs(tmp_path / "out")


def test_channels_are_those_of_the_file_to_continue_too(trained_series: dict[str, Path], tmp_path: Path) -> None:
    """Such a file may have other columns, numbers and words, in any order."""
    values = waves(60, 3, seed=5)
    path = write_series(tmp_path / "other.csv", values)
    wide = pd.read_csv(path).rename(columns={"a": "b", "b": "x", "c": "a"}).assign(note="warm")
    wide.to_csv(path, index=False)
    words = [*_best(trained_series), "--data.predict_path", str(path), "--data.channels", '["a", "b"]']
    command("predict", trained_series["config"], tmp_path / "out", *words)
    (run,) = series_runs(tmp_path / "out")
    rows = table(run / "predictions.csv")
    assert list(rows[0]) == ["date", "a", "b"]
    with torch.no_grad():
        expected = _model(trained_series)(torch.tensor(values[-48:, [2, 0]], dtype=torch.float32)[None])[0]
    found = torch.tensor([[float(row["a"]), float(row["b"])] for row in rows])
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_lengths_of_model_and_data_must_agree(trained_series: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"seq_len=48 and pred_len=12, the data 48 and 6; set --model\.seq_len"):
        command("fit", trained_series["config"], tmp_path, "--data.pred_len", "6")
    assert not series_runs(tmp_path)


def test_export_and_other_users_of_a_checkpoint(trained_series: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained_series["out"], out)
    command("export", trained_series["config"], out, "--ckpt_path", "best", "--output", str(out / "files"))
    session = onnxruntime.InferenceSession(out / "files" / "unireplknet_a.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(5, 48, 2)
    model = _model(trained_series)
    with torch.no_grad():
        expected = model(x)
    (name,) = (node.name for node in session.get_inputs())
    assert_close(torch.from_numpy(session.run(None, {name: x.numpy()})[0]), expected, rtol=1e-3, atol=1e-3)
    best = str(trained_series["folder"] / "checkpoints" / "best.ckpt")
    again = ForecastTask(**{**model.hparams, "weights": best}).eval()
    with torch.no_grad():
        assert_close(again(x), expected)
    weights = model.net.encoder.state_dict()
    torch.save(weights, tmp_path / "backbone.pth")
    partly = ForecastTask(**{**model.hparams, "weights": str(tmp_path / "backbone.pth")})
    assert all(torch.equal(value, weights[key]) for key, value in partly.net.encoder.state_dict().items())
    assert torch.equal(open_model_weight(best), weights["downsample_layers.0.0.weight"])


def open_model_weight(path: str) -> torch.Tensor:
    """The stem of the net that the analyses read from a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.analysis.models.build_backbone", _one_channel)
        return open_model(path).state_dict()["downsample_layers.0.0.weight"]


def _one_channel(name: str, **kwargs: object) -> torch.nn.Module:
    import timm

    return timm.create_model(name, **{"in_chans": 1, "num_classes": 0, **kwargs})


def test_statistics_say_the_period(
    trained_series: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("stats", trained_series["config"], tmp_path)
    assert "dominant period: 24 steps of h; set --model.period 24" in capsys.readouterr().out


def test_quantiles_from_training_to_prediction(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series.csv", waves(noise=0.6))
    config = write_series_config(tmp_path / "c.yaml", series, model={"quantiles": [0.1, 0.5, 0.9]})
    command("fit", config, tmp_path, "--trainer.max_epochs", "4")
    command("test", config, tmp_path, "--ckpt_path", "best", "--data.batch_size", "34")
    command("predict", config, tmp_path, "--ckpt_path", "best")
    fit, tested, predicted = series_runs(tmp_path)
    assert 0.4 < metric(fit, "val_coverage")[-1] <= 1
    model = ForecastTask.load_from_checkpoint(fit / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    data = CSVSeries(str(series), seq_len=48, pred_len=12)
    data.setup("test")
    x, y = (torch.stack(parts) for parts in zip(*[data.test_set[i] for i in range(69)], strict=True))  # type: ignore[index]
    with torch.no_grad():
        forecast = model(x)
    inside = ((forecast[..., 0] <= y) & (y <= forecast[..., 2])).float()
    assert metric(tested, "test_coverage") == pytest.approx([float(inside.mean())], abs=2e-4)  # of batches of 34, 34, 1
    assert abs(float(inside[:34].mean() + inside[34:68].mean() + inside[68:].mean()) / 3 - inside.mean()) > 2e-3
    rows = table(predicted / "predictions.csv")
    assert list(rows[0]) == ["date", "a_q0.1", "a_q0.5", "a_q0.9", "b_q0.1", "b_q0.5", "b_q0.9"]
    assert all(float(row["b_q0.1"]) < float(row["b_q0.9"]) for row in rows)
