"""A forecast that validation moves towards the last value: the share, its errors, and where it is applied."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch.testing import assert_close
from training.small_runs import QUIET, metric

from core.cli import main
from core.io.checkpoint import TaskCheckpoint
from timeseries import ForecastTask
from timeseries.blend import SHARES, Blend

ARGS = {"depths": [1, 1], "dims": [8, 16], "kernel_sizes": [5, 3]}


def _task(**options: object) -> ForecastTask:
    return ForecastTask(
        "unireplknet_a", 2, seq_len=24, pred_len=6, period=12, blend=True, backbone_args=ARGS, **options
    ).eval()


@pytest.mark.parametrize("true_share", SHARES)
def test_best_share_is_found(true_share: float) -> None:
    torch.manual_seed(0)
    blend = Blend(6, 2)
    history, forecast = torch.randn(50, 24, 2), torch.randn(50, 6, 2)
    target = history[:, -1:] + true_share * (forecast - history[:, -1:])
    for share, errors in zip(SHARES, blend.candidates, strict=True):
        errors.update(blend(forecast, history, share) - target)  # type: ignore[operator]
    assert float(blend.choose().compute()["mse"]) == pytest.approx(0, abs=1e-10)
    assert float(blend.share) == true_share
    assert_close(blend(forecast, history), target)


def test_share_is_applied_outside_training_alone() -> None:
    task, x = _task(), torch.randn(3, 24, 2)
    assert task.blend is not None
    whole = task(x)
    task.blend.share.fill_(0.25)
    assert_close(task(x), x[:, -1:] + 0.25 * (whole - x[:, -1:]))
    task.blend.share.fill_(0.0)
    assert_close(task(x), x[:, -1:].expand(-1, 6, -1))


def test_quantiles_move_together() -> None:
    """The middle one moves towards the last value, and the distances between quantiles stay."""
    task, x = _task(quantiles=[0.1, 0.5, 0.9]), torch.randn(3, 24, 2)
    assert task.blend is not None
    torch.nn.init.normal_(task.head.projection.bias)
    whole = task(x)
    task.blend.share.fill_(0.25)
    blended = task(x)
    last = x[:, -1:]
    assert_close(blended[..., 1], last + 0.25 * (whole[..., 1] - last))
    assert_close(blended.diff(dim=-1), whole.diff(dim=-1), rtol=1e-3, atol=1e-5)
    assert (whole.diff(dim=-1) > 0).all()


def test_run_on_a_random_walk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing can be forecast, so the answer is close to the last value, and the run says so."""
    steps = np.random.default_rng(0).normal(size=(600, 2)).cumsum(axis=0)
    table = pd.DataFrame(steps, columns=["a", "b"])
    table.insert(0, "date", pd.date_range("2020-01-01", periods=600, freq="h"))
    table.to_csv(tmp_path / "walk.csv", index=False)
    config = {
        "model": {
            "class_path": "ForecastTask",
            "init_args": {
                "backbone": "unireplknet_a", "backbone_args": ARGS, "blend": True, "normalize": "mean", "lr": 0.01,
            },
        },
        "data": {
            "class_path": "CSVSeries",
            "init_args": {
                "path": str(tmp_path / "walk.csv"), "seq_len": 24, "pred_len": 6, "period": 12, "batch_size": 32,
                "num_workers": 0,
            },
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    }  # fmt: skip
    (tmp_path / "walk.yaml").write_text(yaml.safe_dump(config))
    words = [*QUIET, "--trainer.default_root_dir", str(tmp_path)]
    main(["fit", "-c", str(tmp_path / "walk.yaml"), *words])
    folder = tmp_path / "lightning_logs" / "ForecastTask" / "version_0"
    assert set(metric(folder, "model_share")) <= set(SHARES)
    assert min(metric(folder, "model_share")) < 1
    best = min(metric(folder, "val_mse"))
    assert best <= min(metric(folder, "val_mse_last")) * 1.0001
    assert "The model is no better than" in capsys.readouterr().out

    stored = TaskCheckpoint.read(folder)
    assert float(stored.state_dict["blend.share"]) in SHARES
    assert stored.metrics["val_mse"] == pytest.approx(best)
    main(["validate", "--ckpt_path", str(folder), *words])
    again = metric(folder.parent / "version_1", "val_mse")[-1]
    assert again == pytest.approx(best, rel=1e-5)
