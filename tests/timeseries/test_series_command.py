"""Training, evaluation, prediction, export and statistics of series through the command."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from lightning import Trainer
from PIL import Image
from small_series import TINY, series_runs, waves, write_series, write_series_config
from torch.testing import assert_close
from training.small_runs import command, metric, saved, table

from core.analysis.models import open_model
from core.errors import InputError
from core.training.hub import from_pretrained, save_pretrained
from timeseries import CSVSeries, ForecastTask
from timeseries.metrics import fit_linear, linear_forecast


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
    spec = saved(run, "best")["hyper_parameters"]["spec"]
    assert (spec["channels"], spec["seq_len"], spec["pred_len"]) == (["a", "b"], 48, 12)


def _checkpoint(run: Path) -> str:
    return next(name for name in saved(run, "best")["callbacks"] if "val_mse" in name)


def test_metrics_of_model_and_baselines_equal_a_count_by_hand(trained_series: dict[str, Path], tmp_path: Path) -> None:
    command("test", trained_series["config"], tmp_path, *_best(trained_series), "--data.batch_size", "7")
    data, model = CSVSeries(str(trained_series["series"]), seq_len=48, pred_len=12), _model(trained_series)
    data.setup("test")
    mean, std = torch.tensor(data.spec().mean), torch.tensor(data.spec().std)
    rows = (data.read().values[:280] - mean) / std
    weight = fit_linear(rows, 48, 12)
    errors: dict[str, list[np.ndarray]] = {"": [], "_last": [], "_seasonal": [], "_linear": []}
    for i in range(len(data.test_set)):  # type: ignore[arg-type]
        x, y = data.test_set[i]  # type: ignore[index]
        with torch.no_grad():
            forecasts = {"": model(x[None])[0], "_last": x[-1].expand(12, -1), "_seasonal": x[-24:-12]}
        z = linear_forecast(((x - mean) / std)[None], weight)[0]
        forecasts["_linear"] = z * std + mean
        for name, forecast in forecasts.items():
            errors[name].append(((forecast - y) / std).numpy())
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
        columns = task.channel_columns("a", exact if quantiles else exact[:, 0])
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
        ("a", 60, r"the model has 2 channels and the data 1 \(a\); give data with the channels a, b"),
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


def test_a_length_is_typed_once(trained_series: dict[str, Path], tmp_path: Path) -> None:
    """No configuration names the channels, and the horizon and the history are options of the data alone."""
    words = ["--pred_len", "6", "--seq_len=24", "--trainer.max_epochs", "1"]
    command("fit", trained_series["config"], tmp_path, *words)
    (run,) = series_runs(tmp_path)
    task = ForecastTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    assert (task.spec.seq_len, task.spec.pred_len, task.channel_names) == (24, 6, ["a", "b"])
    assert task(torch.randn(3, 24, 2)).shape == (3, 6, 2)


def test_lengths_of_a_checkpoint_and_the_data_must_agree(trained_series: dict[str, Path], tmp_path: Path) -> None:
    words = [*_best(trained_series), "--pred_len", "6"]
    with pytest.raises(SystemExit, match=r"the model has pred_len=12, the data 6; .* set --data\.pred_len"):
        command("test", trained_series["config"], tmp_path, *words)


def test_a_run_does_not_go_on_with_other_channels(trained_series: dict[str, Path], tmp_path: Path) -> None:
    path = write_series(tmp_path / "other.csv", waves())
    path.write_text(path.read_text().replace("date,a,b", "date,a,c"))
    last = str(trained_series["folder"] / "checkpoints" / "last.ckpt")
    words = ["--ckpt_path", last, "--data.path", str(path), "--trainer.max_epochs", "3"]
    with pytest.raises(SystemExit, match="trained on the channels a, b, the data have a, c"):
        command("fit", trained_series["config"], tmp_path / "out", *words)


def test_task_of_a_series_equals_predict_of_its_file(trained_series: dict[str, Path], tmp_path: Path) -> None:
    """The task alone, from a checkpoint or a shared folder, in the units of the file; by name of the columns."""
    values = 10 * waves(60, seed=5)
    other = write_series(tmp_path / "other.csv", values, start="2024-02-28")
    best = trained_series["folder"] / "checkpoints" / "best.ckpt"
    task = ForecastTask.load_from_checkpoint(best, map_location="cpu").eval()
    shared = from_pretrained(save_pretrained(task, tmp_path / "shared")).eval()

    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    data = CSVSeries(seq_len=48, pred_len=12, num_workers=0, predict_path=str(other))
    (columns,) = trainer.predict(task, datamodule=data)  # type: ignore[misc]
    expected = torch.tensor([columns["a"], columns["b"]]).T
    swapped = pd.read_csv(other).assign(note="warm")[["b", "note", "date", "a"]]
    swapped.to_csv(tmp_path / "swapped.csv", index=False)

    x = torch.tensor(values, dtype=torch.float32)
    for model in (task, shared):
        with torch.no_grad():
            assert_close(model(x[None, -48:])[0], expected, rtol=1e-5, atol=1e-5)
        for file in (other, str(tmp_path / "swapped.csv")):
            rows = model.predict(file)
            assert [row["date"] for row in rows] == columns["date"]
            assert_close(torch.tensor([[row["a"], row["b"]] for row in rows]), expected, rtol=1e-5, atol=1e-5)
        for array in (values, x):
            rows = model.predict(array)
            assert [row["step"] for row in rows] == list(range(1, 13))
            assert_close(torch.tensor([[row["a"], row["b"]] for row in rows]), expected, rtol=1e-5, atol=1e-5)
        rows = model.predict([other, tmp_path / "swapped.csv"], batch_size=1)
        assert [row["file"] for row in rows] == [str(other)] * 12 + [str(tmp_path / "swapped.csv")] * 12
        assert_close(torch.tensor([[row["a"], row["b"]] for row in rows[12:]]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (np.zeros((47, 2)), r"array 0 has 47 rows; seq_len=48 rows are needed"),
        (np.zeros(48), r"array 0 is \(48,\); expected \(rows, channels\)"),
        (np.full((48, 2), np.nan), "all finite"),
        (np.zeros((48, 3)), r"history is \(1, 48, 3\)"),
        ({"a": 1}, "cannot continue dict"),
        ("there_is_none.csv", r"there is no series there_is_none\.csv"),
    ],
)
def test_sources_that_the_task_cannot_continue(source: object, text: str, trained_series: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=text):
        _model(trained_series).predict(source)


def test_a_folder_of_files_is_continued_file_by_file(trained_series: dict[str, Path], tmp_path: Path) -> None:
    paths = [write_series(tmp_path / "in" / name, waves(60, seed=i)) for i, name in enumerate(("a.csv", "b.csv"))]
    words = [*_best(trained_series), "--data.predict_path", str(tmp_path / "in")]
    command("predict", trained_series["config"], tmp_path / "out", *words)
    rows = table(series_runs(tmp_path / "out")[0] / "predictions.csv")
    assert list(rows[0]) == ["file", "date", "a", "b"]
    assert [row["file"] for row in rows] == [str(path) for path in paths for _ in range(12)]
    assert float(rows[12]["a"]) == pytest.approx(_model(trained_series).predict(paths[1])[0]["a"], rel=1e-5)


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
    weights = model.backbone.state_dict()
    torch.save(weights, tmp_path / "backbone.pth")
    partly = ForecastTask(**{**model.hparams, "weights": str(tmp_path / "backbone.pth")})
    assert all(torch.equal(value, weights[key]) for key, value in partly.backbone.state_dict().items())
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
    assert "dominant period: 24 steps of h; set --data.period 24" in capsys.readouterr().out


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
