"""Two processes through the command against one process with the whole batch."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from torch.testing import assert_close
from training.report_page import report_of
from training.small_runs import CLASSES, PLAIN, QUIET, command, metric, picture, runs, saved, table, write_config

pytestmark = pytest.mark.slow

PAIR = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
ONE_STEP = [
    *["--model.norm_eval", "true", "--model.opt", "sgd", "--model.lr", "0.2", "--model.lr_batch", "8"],
    *["--model.layer_decay", "0.9", "--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "0"],
]


def _started(verb: str, config: Path, out: Path, *words: str, program: Sequence[str] = ()) -> subprocess.Popen[str]:
    """A verb in two processes, started as a user would, in a group of their own."""
    line = [sys.executable, *program, "-m", "core.cli", verb, "-c", str(config), *QUIET, *PAIR]
    line += ["--trainer.default_root_dir", str(out), *words]
    environment = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "LARKIT_RUN", "LOCAL_RANK")}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def _in_processes(verb: str, config: Path, out: Path, *words: str, program: Sequence[str] = ()) -> str:
    """Its output; it is killed with its group when it hangs."""
    process = _started(verb, config, out, *words, program=program)
    try:
        output, _ = process.communicate(timeout=150)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 training images, which two processes share evenly, and 9 for validation, which they cannot."""
    root = tmp_path_factory.mktemp("uneven")
    for split, count in {"train": 8, "val": 9}.items():
        for i in range(count):
            file = root / split / CLASSES[i % 3] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(i % 3, i + 50 * (split == "val")).save(file)
    return write_config(root / "photos.yaml", root, **PLAIN)


@pytest.fixture(scope="module")
def one(config: Path) -> Path:
    out = config.parent / "one"
    command("fit", config, out, *ONE_STEP, "--data.batch_size", "8")
    return runs(out)[0]


@pytest.fixture(scope="module")
def two(config: Path) -> Path:
    out = config.parent / "two"
    _in_processes("fit", config, out, *ONE_STEP, "--data.batch_size", "4")
    folders = runs(out)
    assert [folder.name for folder in folders] == ["version_0"]
    return folders[0]


def test_one_step_gives_the_same_weights(one: Path, two: Path) -> None:
    got, expected = saved(two), saved(one)
    assert got["global_step"] == expected["global_step"] == 1
    assert_close(got["state_dict"], expected["state_dict"], rtol=0, atol=1e-6)
    moved = got["optimizer_states"][0]["state"]
    assert sum(float(state["momentum_buffer"].abs().sum()) for state in moved.values()) > 1


def test_learning_rate_is_that_of_the_global_batch(one: Path, two: Path) -> None:
    groups = [
        [group["initial_lr"] for group in saved(run)["optimizer_states"][0]["param_groups"]] for run in (one, two)
    ]
    assert groups[0] == groups[1]
    assert max(groups[1]) == pytest.approx(0.2)


def test_metrics_are_those_of_one_process(one: Path, two: Path) -> None:
    for name in ("val_loss", "val_acc", "train_loss"):
        assert len(metric(two, name)) == 1
        assert metric(two, name) == pytest.approx(metric(one, name), abs=1e-5)


def test_report_is_that_of_one_process(one: Path, two: Path) -> None:
    got, expected = report_of(two), report_of(one)
    assert list(got.sections) == list(expected.sections)
    for name in ("Results", "Classes", "Confusion", "Worst mistakes"):
        assert got.sections[name]["tables"] == expected.sections[name]["tables"]
        assert got.sections[name]["texts"] == expected.sections[name]["texts"]
        for shown, alone in zip(got.sections[name]["pictures"], expected.sections[name]["pictures"], strict=True):
            assert (shown == alone).all()
    assert expected.sections["Results"]["texts"][0].startswith("9 samples")  # each counts once


def test_pictures_and_files_of_a_run_in_processes(one: Path, two: Path) -> None:
    def names(run: Path) -> set[str]:
        return {p.name for p in run.rglob("*") if not p.name.startswith("events")}

    assert names(two) == names(one)
    assert len(list(two.glob("events*"))) == 1


def test_prediction_in_processes_writes_every_file_once_in_order(config: Path, one: Path, tmp_path: Path) -> None:
    """Of 9 files in batches of 2, one process has 3 batches and the other 2; the third file is broken."""
    files = shutil.copytree(config.parent / "val", tmp_path / "files")
    broken = sorted(files.rglob("*.png"))[2]
    broken.write_bytes(b"no image")
    words = ["--ckpt_path", str(one / "checkpoints" / "last.ckpt"), "--data.batch_size", "2"]
    words += ["--data.predict_path", str(files), "--predict.embeddings"]
    command("predict", config, config.parent / "p1", *words, str(tmp_path / "1.npy"))
    output = _in_processes("predict", config, config.parent / "p2", *words, str(tmp_path / "2.npy"))
    (alone,), (shared,) = runs(config.parent / "p1"), runs(config.parent / "p2")
    expected, got = table(alone / "predictions.csv"), table(shared / "predictions.csv")
    assert [row["file"] for row in got] == [row["file"] for row in expected]
    assert [row["file"] for row in got] == [str(file) for file in sorted(files.rglob("*.png"))]
    assert [row["file"] for row in got if row["error"]] == [str(broken)]
    assert [row["class"] for row in got] == [row["class"] for row in expected]
    for row, other in zip(got, expected, strict=True):
        assert float(row["probability"] or 0) == pytest.approx(float(other["probability"] or 0), abs=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "2.npy"), np.load(tmp_path / "1.npy"), atol=1e-4)
    assert len(got) == len(np.load(tmp_path / "2.npy")) == 9
    assert output.count("Wrote 8 predictions") == output.count("1 of 9 files could not be read") == 1


def test_processes_that_torchrun_starts_share_one_folder(config: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    _in_processes("fit", config, tmp_path, *ONE_STEP, "--data.batch_size", "4", program=torchrun)
    assert [run.name for run in runs(tmp_path)] == ["version_0"]
    assert saved(runs(tmp_path)[0])["epoch"] == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_processes_end_and_say_once_how_to_go_on(
    number: int, status: int, config: Path, tmp_path: Path
) -> None:
    process = _started("fit", config, tmp_path, "--trainer.max_epochs", "500", "--data.batch_size", "4")
    try:
        started = time.monotonic()
        while not list(tmp_path.glob("**/last.ckpt")) and time.monotonic() - started < 120:
            time.sleep(0.2)
        os.killpg(process.pid, number)  # as a terminal does, or a job's end
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
    assert process.returncode == status, output
    assert output.count("To resume, run: lightning fit ") == 1
    assert saved(runs(tmp_path)[0])["epoch"] >= 0


def test_process_whose_first_one_was_killed_says_so_in_a_line(config: Path, tmp_path: Path) -> None:
    process = _started("fit", config, tmp_path, "--trainer.max_epochs", "500", "--data.batch_size", "4")
    try:
        started = time.monotonic()
        while not list(tmp_path.glob("**/last.ckpt")) and time.monotonic() - started < 120:
            time.sleep(0.2)
        process.kill()
        output, _ = process.communicate(timeout=60)  # until the other process has closed the stream, too
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if "another process of the run ended" in line]
    assert len(lines) == 1
    assert lines[0].startswith("lightning: error: ")
    assert lines[0].endswith("Fit resumes with --ckpt_path last")
