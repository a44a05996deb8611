"""The report of a forecaster: errors beside those of the baselines, with intervals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_series import series_runs, write_series, write_series_config
from training.report_page import Page, report_of, rows_of
from training.small_runs import command, metric

from core.training.report import number, render_page
from timeseries.report import result_section, window_errors


def _errors(windows: int, size: float, seed: int) -> torch.Tensor:
    """Errors (windows, 4, 2) of neighbors that are alike."""
    generator = np.random.default_rng(seed)
    level = np.repeat(generator.normal(size=windows // 8), 8)
    return torch.from_numpy(size * (level[:, None, None] + 0.1 * generator.normal(size=(windows, 4, 2))))


def _page(**errors: torch.Tensor) -> Page:
    windows = {name: values.numpy() for name, values in window_errors(errors).items()}
    windows["position"] = np.arange(len(errors["model"]))
    logged = {"val_mse": 9.0, "val_mae": 9.0, "val_mse_last": 9.0, "val_coverage": 0.75}
    return Page(render_page("title", "subtitle", [result_section(windows, logged, 4, "standard deviations")]))


def test_errors_stand_beside_those_of_the_baselines() -> None:
    model, last = _errors(80, 1.0, 0), _errors(80, 3.0, 1)
    page = _page(model=model, last=last)
    head = page.sections["Results"]["tables"][0][0]
    assert head == ["", "model", "95 % interval", "last"]
    rows = rows_of(page, "Results")
    assert list(rows) == ["mean squared error", "mean absolute error", "val_coverage"]
    for name, function in (("mean squared error", torch.square), ("mean absolute error", torch.abs)):
        assert rows[name][0] == number(float(function(model).mean()))
        assert rows[name][-1] == number(float(function(last).mean()))
    assert rows["val_coverage"][:2] == ["0.750", ""]

    low, high = (float(end) for end in rows["mean absolute error"][1].split(" to "))
    of_windows = model.abs().mean(dim=(1, 2)).numpy()
    generator = np.random.default_rng(7)
    starts = generator.integers(80, size=(3000, 20))
    plain = [of_windows[(own[:, None] + np.arange(4)).ravel() % 80].mean() for own in starts]
    assert [low, high] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.04)


def test_report_says_how_the_model_compares_with_the_best_baseline() -> None:
    small, large = _errors(800, 1.0, 0), _errors(800, 3.0, 1)
    for model, others, verdict in (
        (small, {"last": 2 * large, "linear": large}, "better than the best baseline, linear: its squared error is 0."),
        (large, {"last": small}, "worse than the best baseline, last"),
        (small, {"last": _errors(800, 1.0, 3)}, "not clearly different from the best baseline, last"),
    ):
        text = " ".join(_page(model=model, **others).sections["Results"]["texts"])
        assert verdict in text
    few = _page(model=small[:7], last=large[:7])  # fewer than two blocks
    assert "interval" not in " ".join(few.sections["Results"]["texts"] + few.sections["Results"]["tables"][0][0])


def test_run_leaves_a_report(trained_series: dict[str, Path]) -> None:
    run = trained_series["folder"]
    page = report_of(run)
    best = min(metric(run, "val_mse"))
    rows = rows_of(page, "Results")
    assert rows["mean squared error"][0] == number(best)
    epoch = metric(run, "val_mse").index(best)
    assert rows["mean squared error"][-1] == number(metric(run, "val_mse_linear")[epoch])
    assert not [name for name in rows if name.startswith("val_mse")]
    for title in ("Forecasts", "Errors by step and channel", "Learning curves"):
        assert len(page.sections[title]["pictures"]) == 1


def test_report_is_on_the_chosen_share_of_a_blend(tmp_path: Path) -> None:
    walk = np.random.default_rng(0).normal(size=(400, 1)).cumsum(axis=0)
    series = write_series(tmp_path / "walk.csv", walk)
    config = write_series_config(tmp_path / "walk.yaml", series, model={"blend": True})
    command("fit", config, tmp_path / "out")
    (run,) = series_runs(tmp_path / "out")
    best = min(metric(run, "val_mse"))
    assert metric(run, "model_share")[metric(run, "val_mse").index(best)] < 1
    rows = rows_of(report_of(run), "Results")
    assert rows["mean squared error"][0] == number(best)
    assert set(rows) >= {"mean squared error", "mean absolute error"}
    assert not [name for name in rows if "share" in name]
