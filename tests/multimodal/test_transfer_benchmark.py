"""The transfer study on two members and one step: all runs, what is not run again, table and picture."""

import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "transfer.py"


def test_study_runs_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "transfer.json"
    small = ["--members", "image", "weather", "--steps", "1", "--samples", "2", "--backbone", "test_unireplknet"]
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *small, "--results", str(results)])
    monkeypatch.setattr("core.data.module.DataModule.val_dataloader", _few_batches)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    entries = json.loads(results.read_text())
    kinds = [entry["kind"] for entry in entries]
    ways = ["joint, norms per member", "joint, norms shared", "joint, last two stages"]
    assert sorted(kinds) == sorted([*ways, "alone", "alone", "from image", "from weather"])
    joint = next(entry for entry in entries if entry["kind"] == "joint, norms per member")
    assert set(joint["errors"]) == {"image", "weather"}
    assert "| alone |" in capsys.readouterr().out
    assert results.with_suffix(".png").stat().st_size > 1000

    results.write_text(json.dumps(entries[:-1]))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert len(json.loads(results.read_text())) == len(entries)
    assert capsys.readouterr().out.count("seed 0:") == 1


def _few_batches(data: object) -> object:
    """Validate on eight samples alone."""
    from torch.utils.data import Subset

    val_set = data._filled(data.val_set, "val")  # type: ignore[attr-defined]
    return data.ordered_loader(Subset(val_set, range(8)))  # type: ignore[attr-defined]
