"""The script that runs ablations and prints them as one table."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ablations.py"
ABLATIONS = SCRIPT.parents[1] / "vision" / "configs" / "ablations"


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")


class Lightning:
    """Stands for the processes that the script starts: writes the metrics that a run would leave."""

    def __init__(self, status: int = 0) -> None:
        self.lines: list[list[str]] = []
        self.status = status

    def __call__(self, line: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.lines.append(line)
        folder = Path(line[line.index("--trainer.default_root_dir") + 1]) / f"run_{line[3]}"
        folder.mkdir()
        if line[3] == "fit":
            (folder / "metrics.csv").write_text("epoch,val_acc,lr\n0,0.25,\n0,,0.1\n1,0.5,\n2,0.375,\n")
        else:
            (folder / "metrics.csv").write_text("epoch,test_acc\n1,0.4375\n")
        return subprocess.CompletedProcess(line, self.status, stdout="", stderr="lightning: error: no such thing")


def test_unknown_prefix_names_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stopped:
        _run(monkeypatch, "kernel_sizes")
    known = ", ".join(sorted({file.stem.partition("_")[0] for file in ABLATIONS.glob("*.yaml")}))
    assert stopped.value.code == f"no ablation begins with 'kernel_sizes'; there are {known}"


def test_a_row_for_each_ablation_and_seed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    started = Lightning()
    monkeypatch.setattr(subprocess, "run", started)
    _run(monkeypatch, "reparam", "--epochs", "3", "--seeds", "2")
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["ablation", "seed", "val", "test", "seconds"]
    names = sorted(file.stem for file in ABLATIONS.glob("reparam*.yaml"))
    assert [row[:4] for row in rows] == [[name, seed, "0.500", "0.438"] for name in names for seed in ("0", "1")]
    fit, test = started.lines[:2]
    assert [line[3] for line in (fit, test)] == ["fit", "test"]
    config = ["-c", str(ABLATIONS.parent / "ablation.yaml"), "-c", str(ABLATIONS / f"{names[0]}.yaml")]
    assert fit[4:8] == test[4:8] == config
    assert fit[-4:] == ["--seed_everything", "0", "--trainer.max_epochs", "3"]
    assert test[-2:] == ["--ckpt_path", "best"]


def test_what_a_failed_run_says_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Lightning(status=1))
    with pytest.raises(SystemExit) as stopped:
        _run(monkeypatch, "extra_none")
    assert "extra_none.yaml" in str(stopped.value.code)
    assert str(stopped.value.code).endswith("\nlightning: error: no such thing")


def test_other_options_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Lightning()
    monkeypatch.setattr(subprocess, "run", started)
    _run(monkeypatch, "extra_none", "--data.batch_size", "8", "--epochs", "3")
    fit, test = started.lines
    assert [line[line.index("--data.batch_size") + 1] for line in (fit, test)] == ["8", "8"]
    assert "--epochs" not in fit


@pytest.mark.slow
def test_one_ablation_for_one_short_epoch() -> None:
    few = [f"--trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]
    line = [sys.executable, str(SCRIPT), "mobilenetv2_last_k7", "--epochs", "1", *few]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    name, seed, *accuracies, seconds = done.stdout.splitlines()[1].split()
    assert (name, seed) == ("mobilenetv2_last_k7", "0")
    assert all(0 <= float(accuracy) <= 1 for accuracy in accuracies)
    assert float(seconds) > 0
