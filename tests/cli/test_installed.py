"""The installed scripts, in processes of their own and from another working directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from training.small_runs import PLAIN, QUIET, runs, write_config

pytestmark = pytest.mark.slow

SCRIPTS = {name: [str(Path(sys.executable).with_name(name))] for name in ("lightning", "larkit")}
MODULE = [sys.executable, "-m", "core.cli"]


def _shell(line: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "LARKIT_RUN", "PYTHONPATH")}
    environment |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=150, check=False)


@pytest.mark.parametrize("script", ["lightning", "larkit"])
def test_scripts_tell_their_version(script: str, tmp_path: Path) -> None:
    done = _shell([*SCRIPTS[script], "--version"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("larkit ")


def test_help_does_not_wait_for_lightning(tmp_path: Path) -> None:
    code = "import sys, core.cli; core.cli.main(['--help']); sys.exit('lightning' in sys.modules)"
    done = _shell([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: lightning VERB")


def test_fit_from_another_folder_leaves_its_run_there(photos: Path, tmp_path: Path) -> None:
    config, there = write_config(tmp_path / "c.yaml", photos, **PLAIN), tmp_path / "there"
    there.mkdir()
    words = ["-c", str(config), "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1"]
    done = _shell([*SCRIPTS["lightning"], "fit", *words], there)
    assert done.returncode == 0, done.stderr
    assert "Epoch 0" in done.stdout  # the progress bar
    assert len(runs(there)) == 1
    assert [path.name for path in there.iterdir()] == ["lightning_logs"]
    for noise in ("Warning", "Traceback", "Tip"):
        assert noise not in done.stderr + done.stdout
    again = _shell([*MODULE, "validate", "-c", str(config), "--ckpt_path", "best", *QUIET], there)
    assert again.returncode == 0, again.stderr
    assert "val_acc" in again.stdout
