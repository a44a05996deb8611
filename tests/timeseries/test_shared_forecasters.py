"""Forecasters in folders: a run with its baselines, and the system of several inputs."""

from pathlib import Path

import torch
from huggingface_hub import ModelCard
from small_series import series_runs, waves, write_series, write_series_config

from core.cli import main
from core.training.hub import from_pretrained, save_pretrained
from timeseries import ForecastTask, GlobalArchitecture, GlobalForecastTask, GlobalSpec

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def test_a_forecasting_run_and_its_baselines(tmp_path: Path) -> None:
    config = write_series_config(tmp_path / "series.yaml", write_series(tmp_path / "series.csv", waves()))
    main(["fit", "-c", str(config), *QUIET, "--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "1"])
    path = series_runs(tmp_path)[0] / "checkpoints" / "best.ckpt"
    folder = save_pretrained(path, tmp_path / "shared")
    loaded, task = from_pretrained(folder), ForecastTask.load_from_checkpoint(path).eval()
    x = torch.randn(2, 48, 2)
    with torch.no_grad():
        assert torch.equal(loaded(x), task(x))
    assert loaded.spec == task.spec
    assert loaded.channel_names == ["a", "b"]
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert [r.metric_name for r in results] == ["val_mse"]  # the baselines stand in the table alone
    assert "| val_mse_linear |" in (folder / "README.md").read_text()


def test_a_system_of_several_inputs(tmp_path: Path) -> None:
    sizes = GlobalArchitecture(tree=(2, 2), stations=2, d_model=32, n_heads=2, d_ff=16)
    places = tuple((float(i), 0.0, 1.0) for i in range(8))
    channels = tuple(f"station_{i}" for i in range(8))
    spec = GlobalSpec(channels=channels, seq_len=8, label_len=4, pred_len=4, places=places)
    task = GlobalForecastTask("test_unireplknet", sizes, spec=spec)
    loaded = from_pretrained(save_pretrained(task, tmp_path / "shared"))
    assert all(torch.equal(t, task.state_dict()[n]) for n, t in loaded.state_dict().items())
    assert loaded.spec == spec
    assert torch.equal(loaded.net.places, task.net.places)  # type: ignore[union-attr]
    assert "task(" not in (tmp_path / "shared" / "README.md").read_text().replace("task = ", "")
