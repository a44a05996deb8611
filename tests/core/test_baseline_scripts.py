"""The baselines and the measurement of memory: what they say before they begin, and of what they cannot use."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONFIGS = {"linear_baseline": "vision/configs/cls.yaml", "shape_baseline": "pointcloud/configs/cls.yaml"}


def _run(monkeypatch: pytest.MonkeyPatch, name: str, *words: str) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("linear_baseline", "A linear model on the same maps and splits"),
        ("shape_baseline", "Nearest centroid on simple features"),
        ("global_memory", "One training step of the papers' global configuration"),
    ],
)
def test_help_measures_nothing(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("timeseries.GlobalForecastTask", None)
    with pytest.raises(SystemExit, match="0"):
        _run(monkeypatch, name, "--help")
    words = " ".join(capsys.readouterr().out.split())
    assert said in words
    assert CONFIGS.get(name, "") in words


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "a.yaml cannot be read (No such file or directory); expected the file of a configuration of "),
        ("- 1\n", "a.yaml names no data; expected the file of a configuration of "),
        (
            "data: {class_path: vision.openmmlab.demo.DigitScenes}",
            "is of vision.openmmlab.demo.DigitScenes; expected",
        ),
    ],
)
def test_files_that_are_no_configuration_of_these_data(
    name: str,
    content: str | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a.yaml"
    if content:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        _run(monkeypatch, name, str(file))
    words = " ".join(capsys.readouterr().err.split())
    assert said in words
    assert ("vision.Digits" if name == "linear_baseline" else "pointcloud.DigitClouds") in words.partition(said)[2]


def test_data_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        f"data: {{class_path: pointcloud.PointFolder, init_args: {{root: {tmp_path / 'b'}}}}}", encoding="utf-8"
    )
    with pytest.raises(SystemExit, match="2"):
        _run(monkeypatch, "shape_baseline", str(file))
    assert f"there is no folder {tmp_path / 'b' / 'train'}" in " ".join(capsys.readouterr().err.split())


def test_baseline_of_a_configuration(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fitted: list[Any] = []
    monkeypatch.setattr("sklearn.linear_model.LogisticRegression.fit", lambda self, x, y: fitted.append((x, y)) or self)
    monkeypatch.setattr("sklearn.linear_model.LogisticRegression.score", lambda self, x, y: self.C)
    monkeypatch.chdir(BENCHMARKS.parent)
    _run(monkeypatch, "linear_baseline")
    assert capsys.readouterr().out == "logistic regression, C=0.1: val_acc 0.100, test_acc 0.100\n"
    assert [(len(x), len(y)) for x, y in fitted] == [(3500, 3500)] * 4
