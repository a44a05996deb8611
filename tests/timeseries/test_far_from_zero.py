"""Channels that are far from zero: the same training, metrics, pictures and forecasts as near zero, plus the level."""

from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import timm
import torch
from lightning import Trainer
from small_series import TINY, series_runs, waves, write_series, write_series_config
from torch.testing import assert_close
from training.small_runs import command, metric, table

from core.errors import InputError
from core.training.hub import from_pretrained, save_pretrained
from timeseries import CSVSeries, ForecastTask, GlobalArchitecture, GlobalForecaster
from timeseries.data import Windows
from timeseries.files import narrowed, read_series
from timeseries.metrics import Baselines

LEVEL = 1.7e9
"""Float32 has steps of 128 here."""


def _values(rows: int = 400) -> np.ndarray:
    """Waves in steps of 1/1024, which float64 holds at any level of this file."""
    return np.round(1024 * waves(rows)) / 1024


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a run of fit, test and predict each, on the same waves near and far from zero."""
    folders = {}
    for name, level in (("near", 0.0), ("far", LEVEL)):
        folder = tmp_path_factory.mktemp(name)
        series = write_series(folder / "series.csv", _values() + level)
        config = write_series_config(folder / "series.yaml", series)
        command("fit", config, folder)
        command("test", config, folder, "--ckpt_path", "best")
        command("predict", config, folder, "--ckpt_path", "best")
        folders[name] = folder
    return folders


def _task(folder: Path) -> ForecastTask:
    checkpoint = series_runs(folder)[0] / "checkpoints" / "best.ckpt"
    return ForecastTask.load_from_checkpoint(checkpoint, map_location="cpu").eval()


def test_metrics_of_model_and_baselines(runs: dict[str, Path]) -> None:
    (near_fit, near_test, _), (far_fit, far_test, _) = (series_runs(runs[name]) for name in ("near", "far"))
    assert metric(far_fit, "train_loss") == pytest.approx(metric(near_fit, "train_loss"), rel=1e-3)
    assert metric(far_fit, "val_mse")[-1] < 0.5 * metric(far_fit, "val_mse_last")[-1]
    for name in ("mse", "mae", "mse_last", "mse_seasonal", "mse_linear"):
        assert metric(far_test, f"test_{name}") == pytest.approx(metric(near_test, f"test_{name}"), rel=1e-3)


def test_forecasts_have_the_digits_of_the_file(runs: dict[str, Path], tmp_path: Path) -> None:
    """From the command, a checkpoint and a shared folder, of a file, an array, and a float64 tensor."""
    near, far = (table(series_runs(runs[name])[2] / "predictions.csv") for name in ("near", "far"))
    predicted = torch.tensor([[float(row[name]) for name in ("a", "b")] for row in far], dtype=torch.float64)
    expected = torch.tensor([[float(row[name]) for name in ("a", "b")] for row in near], dtype=torch.float64)
    assert_close(predicted - LEVEL, expected, rtol=1e-3, atol=1e-2)

    task = _task(runs["far"])
    raw = torch.from_numpy(_values() + LEVEL)
    for model in (task, from_pretrained(save_pretrained(task, tmp_path / "shared")).eval()):
        with torch.no_grad():
            forecast = model(raw[None, -48:])[0]
        assert forecast.dtype == torch.float64
        assert_close(forecast, predicted, rtol=0, atol=2e-5)
        for source in (runs["far"] / "series.csv", raw, raw.numpy()):
            rows = torch.tensor([[row["a"], row["b"]] for row in model.predict(source)], dtype=torch.float64)
            assert_close(rows, predicted, rtol=0, atol=2e-5)


def test_whole_numbers_are_not_rounded_either(runs: dict[str, Path]) -> None:
    whole = torch.from_numpy(np.round(_values() + LEVEL)).long()[None, -48:]
    with torch.no_grad():
        assert torch.equal(_task(runs["far"])(whole), _task(runs["far"])(whole.double()))


def test_statistics_in_the_checkpoint(runs: dict[str, Path]) -> None:
    train = _values()[:280] + LEVEL
    task = _task(runs["far"])
    assert task.spec.mean == pytest.approx(train.mean(axis=0), rel=1e-14)
    feature_map = task.feature_map
    exact = feature_map.mean.double() + feature_map.mean_remainder.double()
    assert exact.tolist() == pytest.approx(train.mean(axis=0), rel=1e-14)
    again = _task(runs["near"])
    again.load_state_dict(task.state_dict())
    assert torch.equal(again.feature_map.mean_remainder, feature_map.mean_remainder)


def test_exported_forecaster(runs: dict[str, Path], tmp_path: Path) -> None:
    command("export", runs["far"] / "series.yaml", runs["far"], "--ckpt_path", "best", "--output", str(tmp_path))
    session = onnxruntime.InferenceSession(tmp_path / "unireplknet_a.onnx", providers=["CPUExecutionProvider"])
    x = torch.from_numpy(_values() + LEVEL)[None, -48:]
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert_close(torch.from_numpy(found), _task(runs["far"])(x), rtol=0, atol=1e-3)


def test_pictures_show_the_changes(runs: dict[str, Path]) -> None:
    task = _task(runs["far"])
    x = torch.from_numpy(_values() + LEVEL)[None, -48:]
    task.keep_examples("predict", x, task(x), [])
    assert_close(task.examples[0].history, x[0, :, 0], rtol=0, atol=0)
    assert len(task.examples[0].forecast.unique()) == 12


@pytest.mark.parametrize("amplitude", [100.0, 1.0, 0.01])
def test_changes_of_any_size_are_read(amplitude: float, tmp_path: Path) -> None:
    values = LEVEL + amplitude * waves(200)
    path = write_series(tmp_path / "a.csv", values)
    data = CSVSeries(str(path), seq_len=24, pred_len=4, num_workers=0)
    data.setup("fit")
    history, horizon = next(iter(data.val_dataloader()))
    assert history.dtype == horizon.dtype == torch.float64
    assert_close(history[0], torch.tensor(values[116:140]), rtol=1e-15, atol=0)


def test_float32_is_kept_where_it_is_enough() -> None:
    near = torch.tensor(waves(200), dtype=torch.float64)
    assert narrowed(near).dtype == narrowed(1e-9 * near).dtype == narrowed(1e9 * near).dtype == torch.float32
    assert narrowed(near + 1e3).dtype == torch.float32
    assert narrowed(near + 1e6).dtype == torch.float64
    assert narrowed(torch.full((3, 1), 1.7e9 + 1, dtype=torch.float64)).dtype == torch.float64  # one file of many


def test_files_near_and_far_are_continued_together(runs: dict[str, Path], tmp_path: Path) -> None:
    near = write_series(tmp_path / "near.csv", _values())
    task = _task(runs["far"])
    both = task.predict([near, runs["far"] / "series.csv"])
    alone = task.predict(runs["far"] / "series.csv")
    assert [row["a"] for row in both[12:]] == pytest.approx([row["a"] for row in alone], abs=1e-4)


@pytest.mark.parametrize("fill", ["previous", "linear"])
def test_a_filled_channel_that_never_changes_is_constant(fill: str, tmp_path: Path) -> None:
    values = waves(100)
    values[:, 1] = 3.1
    path = write_series(tmp_path / "a.csv", values)
    rows = pd.read_csv(path)
    rows.loc[20:45, "b"] = np.nan
    rows.to_csv(path, index=False)
    with pytest.raises(InputError, match="the training rows of b never change"):
        CSVSeries(str(path), fill=fill, seq_len=12, pred_len=4).prepare_data()


def test_quantiles_far_from_zero() -> None:
    net = ForecastTask(**TINY, channels=2, seq_len=48, pred_len=12, quantiles=[0.1, 0.9]).eval()
    x, y = torch.randn(3, 48, 2).double(), torch.randn(3, 12, 2).double()
    near_forecast = net(x)
    near_loss = net.loss(near_forecast, y)
    net.feature_map.set_scale([LEVEL + 1, -LEVEL - 3], [1, 1])
    level = torch.tensor([LEVEL + 1, -LEVEL - 3], dtype=torch.float64)
    far_forecast = net(x + level)
    assert_close(far_forecast - level[:, None], near_forecast, rtol=0, atol=1e-5)
    assert_close(net.loss(far_forecast, y + level), near_loss, rtol=1e-5, atol=1e-6)
    columns = net.channel_columns("a", far_forecast[0, :, 0])
    assert columns["a_q0.9"] == pytest.approx(far_forecast[0, :, 0, 1].tolist(), rel=1e-14)


def test_baselines_far_from_zero() -> None:
    values = _values(300)
    near, far = Baselines(values, 24, 6, 12), Baselines(values + LEVEL, 24, 6, 12)
    x = torch.from_numpy(values[None, -24:])
    for name, forecast in far(x + LEVEL).items():
        assert_close(forecast - LEVEL, near(x)[name].double(), rtol=0, atol=1e-3)


def test_stations_far_from_zero() -> None:
    """Windows keep what is stored in float64, and the global forecaster centers before the cast."""
    values = np.round(1024 * waves(40, 8)) / 1024
    (near, _), (far, _) = Windows(values, 12, 5)[3], Windows(values + LEVEL, 12, 5)[3]
    assert_close(far - LEVEL, near, rtol=0, atol=0)
    assert Windows(values.astype(np.int16), 12, 5)[3][0].dtype == torch.float32

    sizes = GlobalArchitecture(tree=(2, 2), stations=2, d_model=32, n_heads=4, d_ff=16, moving_avg=5)
    backbone = timm.create_model("test_unireplknet", in_chans=1, num_classes=0)
    net = GlobalForecaster(backbone, sizes, seq_len=12, label_len=4, pred_len=5).eval()
    marks, ahead = torch.rand(1, 12, 4) - 0.5, torch.rand(1, 9, 4) - 0.5
    with torch.no_grad():
        forecast = net(far[None], marks, ahead)
        assert forecast.dtype == torch.float64
        assert_close(forecast - LEVEL, net(near[None], marks, ahead), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("level", "precision"), [(LEVEL, "bf16-true"), (1013.0, "bf16-true"), (1e5, "16-true")])
def test_batches_of_16_bits_are_refused(level: float, precision: str, tmp_path: Path) -> None:
    data = CSVSeries(str(write_series(tmp_path / "a.csv", waves(200) + level)), seq_len=48, pred_len=12)
    task = ForecastTask(**TINY, spec=data.spec())
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, precision=precision)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"{precision} rounds the rows .* and a changes by only 0\.7.* bf16-mixed"):
        trainer.fit(task, data)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_batches_of_16_bits_near_zero(precision: str, tmp_path: Path) -> None:
    """The level of the second channel is seven of its standard deviations."""
    data = CSVSeries(str(write_series(tmp_path / "a.csv", waves(300))), seq_len=48, pred_len=12, num_workers=0)
    task = ForecastTask(**TINY, spec=data.spec())
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        max_epochs=1,
        limit_train_batches=2,
        precision=precision,  # type: ignore[arg-type]
    )
    trainer.fit(task, data)
    z = torch.from_numpy((data.training_rows() - task.feature_map.mean.numpy()) / task.feature_map.std.numpy())
    assert float(trainer.callback_metrics["val_mse_linear"]) < 0.2 * float(z.square().mean())


def test_bf16_mixed_does_not_round_the_rows(tmp_path: Path) -> None:
    """Lightning leaves the batches alone there."""
    losses = []
    for level in (0.0, LEVEL):
        torch.manual_seed(0)
        data = CSVSeries(
            str(write_series(tmp_path / "a.csv", _values() + level)), seq_len=48, pred_len=12, num_workers=0
        )
        task = ForecastTask(**TINY, spec=data.spec())
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, precision="bf16-mixed")
        (measured,) = trainer.validate(task, data, verbose=False)
        losses.append(measured["val_mse"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_the_case_of_timestamps(tmp_path: Path) -> None:
    step = np.arange(400)
    values = np.round(np.stack([LEVEL + 100 * np.sin(2 * np.pi * step / 7), 50 * np.cos(step)], 1), 3)
    series = read_series(write_series(tmp_path / "far.csv", values, freq="D"))
    assert_close(series.values, torch.from_numpy(values), rtol=0, atol=0)
