"""The global data in the published layout, the made-up world, and the global task through the command."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning import Trainer
from small_series import series_runs
from torch.testing import assert_close
from training.small_runs import command, metric, table

from core.errors import InputError, MissingError
from timeseries import GlobalForecastTask, GlobalWeather, MadeUpWorld, time_marks
from timeseries.demo import make_world
from timeseries.metrics import Baselines

LENGTHS = {"seq_len": 12, "label_len": 4, "pred_len": 5}
NET: dict[str, Any] = {
    "backbone": "test_unireplknet",
    "backbone_args": {"layer_scale_init_value": 0.5},
    "architecture": {"tree": [2, 2], "stations": 2, "d_model": 32, "n_heads": 4, "d_ff": 16},
    "opt": "adam",
    "lr": 0.003,
}


def _config(path: Path, root: Path, **data: Any) -> Path:
    content = {
        "model": {"class_path": "GlobalForecastTask", "init_args": NET},
        "data": {
            "class_path": "GlobalWeather",
            "init_args": {"root": str(root), "batch_size": 8, "num_workers": 0, **LENGTHS, **data},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1, "limit_train_batches": 8},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_windows_and_marks_by_hand(world: Path) -> None:
    data = GlobalWeather(str(world), **LENGTHS, num_workers=0)
    data.setup("fit")
    stored = np.load(world / "temp_global_hourly_val.npy")[..., 0]
    marks = time_marks(data.read_split("val")[1])
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [154 - 16, 22 - 16, 44 - 16]  # type: ignore[arg-type]
    for i in range(6):
        (x, past, ahead), y = data.val_set[i]  # type: ignore[index]
        assert_close(x, torch.tensor(stored[i : i + 12]))
        assert_close(y, torch.tensor(stored[i + 12 : i + 17]))
        assert_close(past, marks[i : i + 12])
        assert_close(ahead, marks[i + 8 : i + 17])
    train = np.load(world / "temp_global_hourly_train.npy")[..., 0]
    assert np.array_equal(data.training_rows(), train)
    baselines = Baselines(data.training_rows(), 12, 5, 24)
    assert_close(baselines.mean, torch.tensor(train.mean(axis=0)), rtol=1e-4, atol=1e-4)
    assert_close(baselines.std, torch.tensor(train.std(axis=0)), rtol=1e-4, atol=1e-4)
    assert sum(len(y) for _, y in data.val_dataloader()) == 6


def test_arrays_of_two_axes_and_times_as_text(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "w")
    for split in ("train", "val", "test"):
        values = tmp_path / "w" / f"wind_global_hourly_{split}.npy"
        np.save(values, np.load(values)[..., 0].astype(np.float64))
        times = tmp_path / "w" / f"data_time_{split}.npy"
        np.save(times, np.load(times).astype("datetime64[s]").astype(str))
    old, new = (GlobalWeather(str(root), variable="wind", **LENGTHS) for root in (world, tmp_path / "w"))
    for data in (old, new):
        data.setup("fit")
    for a, b in zip(old.val_set[3][0], new.val_set[3][0], strict=True):  # type: ignore[index]
        assert_close(a, b, check_dtype=False)


def test_the_made_up_world_is_the_same_every_time(world: Path, tmp_path: Path) -> None:
    make_world(tmp_path / "again", regions=2, nodes=2, stations=2, hours=220)
    names = sorted(path.name for path in world.iterdir())
    assert len(names) == 10
    for name in names:
        assert (world / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert not list(tmp_path.glob("*.part"))
    steps = np.concatenate([np.load(world / f"data_time_{split}.npy") for split in ("train", "val", "test")])
    assert set(np.diff(steps).astype("timedelta64[h]").astype(int)) == {1}


def test_fronts_pass_from_west_to_east(tmp_path: Path) -> None:
    """Half an hour for each degree: the western station says what comes to the eastern one."""
    make_world(tmp_path / "w", regions=3, nodes=2, stations=2, hours=1000)
    longitude = np.load(tmp_path / "w" / "stations_sorted.npy")[:, 1]
    parts = [np.load(tmp_path / "w" / f"temp_global_hourly_{split}.npy")[..., 0] for split in ("train", "val", "test")]
    values = np.concatenate(parts)
    fronts = values[24:] - values[:-24]  # neither daily wave nor level
    lags, pairs = np.arange(-60, 61), 0
    for west, east in np.ndindex(12, 12):
        expected = (longitude[east] - longitude[west]) / 2
        if not 5 < expected < 50:
            continue
        later = [fronts[60 + lag : len(fronts) - 60 + lag, east] for lag in lags.tolist()]
        found = [np.corrcoef(fronts[60:-60, west], other)[0, 1] for other in later]
        assert max(found) > 0.9
        assert lags[np.argmax(found)] == pytest.approx(expected, abs=1.5)
        pairs += 1
    assert pairs > 3


def test_nan_is_found_in_all_rows_of_a_long_split(tmp_path: Path) -> None:
    make_world(tmp_path / "w", regions=2, nodes=1, stations=1, hours=1500)
    file = tmp_path / "w" / "temp_global_hourly_train.npy"
    values = np.load(file)
    values[1040, 1] = np.nan
    np.save(file, values)
    with pytest.raises(InputError, match=r"temp_global_hourly_train\.npy holds NaN or infinity"):
        GlobalWeather(str(tmp_path / "w"), **LENGTHS).prepare_data()


def _spoil(root: Path, name: str, change: Any) -> None:
    if change is None:
        (root / name).unlink()
    else:
        np.save(root / name, change(np.load(root / name)))


def _with_nan(values: np.ndarray) -> np.ndarray:
    values[3, 2] = np.nan
    return values


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("temp_global_hourly_val.npy", None, r"there is no .*temp_global_hourly_val\.npy"),
        ("temp_global_hourly_val.npy", _with_nan, r"temp_global_hourly_val\.npy holds NaN"),
        ("temp_global_hourly_test.npy", lambda v: v[:, :7], r"is \(44, 7\), with 44 timestamps and 8 stations"),
        ("temp_global_hourly_test.npy", lambda v: v[:9], r"is \(9, 8\), with 44 timestamps"),
        ("stations_sorted.npy", lambda v: v[:, 0], r"stations_sorted\.npy is \(8,\)"),
        ("data_time_train.npy", lambda v: v[::-1], "timestamps in .* do not rise"),
        ("data_time_train.npy", lambda v: v.astype(object), "no array of plain numbers or timestamps"),
        ("data_time_train.npy", lambda v: np.array(["soon"] * len(v)), "holds no timestamps"),
    ],
)
def test_arrays_that_cannot_be_used(name: str, change: Any, text: str, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "w")
    _spoil(tmp_path / "w", name, change)
    with pytest.raises(InputError, match=text):
        GlobalWeather(str(tmp_path / "w"), **LENGTHS).prepare_data()


def test_lengths_and_folders_that_do_not_fit(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the val split has 22 steps; seq_len=20 and pred_len=5 need 25"):
        GlobalWeather(str(world), seq_len=20, pred_len=5, label_len=1).prepare_data()
    with pytest.raises(InputError, match="label_len up to seq_len"):
        GlobalWeather(str(world), seq_len=4, label_len=5)
    with pytest.raises(InputError, match=r"^variable='rain'; expected 'temp' or 'wind'$"):
        GlobalWeather(str(world), variable="rain")  # type: ignore[arg-type]
    with pytest.raises(MissingError, match=r"stations_sorted\.npy; expected the arrays of Corrformer's authors"):
        GlobalWeather(str(tmp_path / "nothing")).prepare_data()


def test_global_task_from_training_to_prediction(world: Path, tmp_path: Path) -> None:
    config = _config(tmp_path / "c.yaml", world)
    command("fit", config, tmp_path)
    command("test", config, tmp_path, "--ckpt_path", "best")
    command("predict", config, tmp_path, "--ckpt_path", "best")
    fit, tested, predicted = series_runs(tmp_path, "GlobalForecastTask")
    model = GlobalForecastTask.load_from_checkpoint(fit / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    data = GlobalWeather(str(world), **LENGTHS)
    data.setup("test")
    squared, absolute, seasonal = [], [], []
    for i in range(28):
        (x, past, ahead), y = data.test_set[i]  # type: ignore[index]
        with torch.no_grad():
            error = model(x[None], past[None], ahead[None])[0] - y
        squared.append(float(error.square().mean()) / 100)
        absolute.append(float(error.abs().mean()) / 10)
        seasonal.append(float((x[:5] - y).square().mean()) / 100)
    assert metric(tested, "test_mse") == pytest.approx([np.mean(squared)], rel=1e-3)
    assert metric(tested, "test_mae") == pytest.approx([np.mean(absolute)], rel=1e-3)
    assert metric(tested, "test_mse_seasonal") == pytest.approx([np.mean(seasonal)], rel=1e-3)
    rows = table(predicted / "predictions.csv")
    assert list(rows[0]) == ["date", *[f"station_{i}" for i in range(8)]]
    assert [row["date"] for row in rows] == [f"2019-01-10 {hour:02d}:00:00" for hour in range(4, 9)]
    for name in ("forecasts.png", "errors.png"):
        assert (tested / name).is_file()
    weights = model.net.state_dict()
    torch.save(weights, tmp_path / "whole.pth")
    again = GlobalForecastTask(**{**model.hparams, "weights": str(tmp_path / "whole.pth")})
    assert all(torch.equal(value, weights[name]) for name, value in again.net.state_dict().items())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--model.architecture.tree", "[2, 3]"], "the data have 8 stations; the tree has 6 leaves of 2 stations, 12"),
        (["--data.value_scale", "0"], r"value_scale=0\.0"),
        (["--model.architecture.memory", "pool"], "memory"),
    ],
)
def test_models_that_do_not_fit_the_data(words: list[str], text: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"(?s)^lightning: error: .*{text}"):
        command("fit", _config(tmp_path / "c.yaml", world), tmp_path, *words)
    assert not series_runs(tmp_path, "GlobalForecastTask")


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        ({"label_len": 3}, r"the model has label_len=4, the data 3; .* set --data\.label_len"),
        ({"pred_len": 4}, "the model has pred_len=5, the data 4"),
    ],
)
def test_data_with_other_lengths_than_the_model(lengths: dict[str, int], text: str, world: Path) -> None:
    task = GlobalForecastTask(**NET, spec=GlobalWeather(str(world), **LENGTHS).spec())
    with pytest.raises(InputError, match=text):
        task.use_spec(GlobalWeather(str(world), **LENGTHS | lengths).spec())


def test_the_task_alone_continues_a_folder(world: Path, tmp_path: Path) -> None:
    """The places of the stations travel with the checkpoint."""
    spec = GlobalWeather(str(world), **LENGTHS).spec()
    task = GlobalForecastTask(**NET, spec=spec).eval()
    rows = task.predict(str(world))
    assert [row["date"] for row in rows] == [f"2019-01-10 {hour:02d}:00:00" for hour in range(4, 9)]
    values, times = GlobalWeather(str(world), **LENGTHS).read_split("test")
    marks = time_marks(pd.date_range(times[-12], periods=17, freq="h"))
    x = torch.tensor(np.array(values[-12:], dtype=np.float32))
    with torch.no_grad():
        expected = task(x[None], marks[None, :12], marks[None, 8:])[0]
    found = torch.tensor([[row[f"station_{i}"] for i in range(8)] for row in rows])
    assert_close(found, expected, rtol=1e-5, atol=1e-4)
    task.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    task.trainer.strategy.connect(task)
    task.trainer.save_checkpoint(tmp_path / "task.ckpt", weights_only=True)
    again = GlobalForecastTask.load_from_checkpoint(tmp_path / "task.ckpt", map_location="cpu").eval()
    assert torch.equal(again.net.places, task.net.places)
    assert again.spec == spec


def test_export_of_several_inputs_is_refused(world: Path, tmp_path: Path) -> None:
    config = _config(tmp_path / "c.yaml", world)
    task = GlobalForecastTask(**NET, spec=GlobalWeather(str(world), **LENGTHS).spec())
    torch.save(task.net.encoder.state_dict(), tmp_path / "b.pth")
    with pytest.raises(SystemExit, match="takes several inputs"):
        command("export", config, tmp_path, "--model.weights", str(tmp_path / "b.pth"))


def test_the_built_in_world_is_made_at_the_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def make(root: Path) -> None:
        calls.append(root)
        make_world(root, regions=2, nodes=2, stations=2, hours=220)

    monkeypatch.setattr("timeseries.demo.make_world", make)
    for _ in range(2):
        MadeUpWorld(str(tmp_path / "w"), **LENGTHS).prepare_data()
    assert calls == [tmp_path / "w"]
