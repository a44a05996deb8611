"""A command that is stopped, or that the machine fails: exit status, one line, and how to resume."""

import errno
import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer
from torch.utils.data import get_worker_info
from training.small_runs import Interrupt, add_callbacks, command, metric, runs, saved, write_config

import core.cli
from core.cli import main
from core.stopping import Terminated, terminable
from core.training.callbacks import SigtermCallback
from core.training.run_folder import resume_hint

pytestmark = pytest.mark.usefixtures("no_pictures")

SWEEP = Path(__file__).with_name("sweep.py")


def _ends(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Exit code of the command if this happens in it."""

    def fail(words: Any) -> None:
        raise error

    monkeypatch.setattr(core.cli, "_run", fail)
    with pytest.raises(SystemExit) as stopped:
        main(["cost", "resnet50"])
    return stopped.value.code


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (Terminated(), 143)])
def test_status_after_a_signal(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _ends(error, monkeypatch) == status
    assert re.fullmatch(r"\nlightning: stopped by (Ctrl-C|SIGTERM)\.\n", capsys.readouterr().err)


def test_sigterm_reaches_the_command_and_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(core.cli, "_run", lambda words: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        main(["cost", "resnet50"])
    assert stopped.value.code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(
    ("number", "texts"),
    [
        (errno.ENOSPC, ["out/a.png could not be written: the disk is full", "Make room"]),
        (errno.EROFS, ["out/a.png may not be written or read", "--trainer.default_root_dir FOLDER"]),
        (errno.EACCES, ["out/a.png may not be written or read", "Change its permissions"]),
    ],
)
def test_message_about_the_disk(number: int, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    message = _ends(OSError(number, os.strerror(number), "out/a.png"), monkeypatch)
    assert message.startswith("lightning: error: ")
    for text in texts:
        assert text in message


@pytest.mark.parametrize("error", [RuntimeError("a defect"), OSError(errno.EIO, "broken"), KeyError("x")])
def test_defect_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.cli, "_run", lambda words: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        main(["cost", "resnet50"])


@pytest.mark.parametrize(
    ("error", "files", "died"),
    [
        (
            "ConnectionResetError(104, 'reset')",
            ["torch/utils/data/dataloader.py", "multiprocessing/connection.py"],
            True,
        ),
        ("EOFError()", ["torch/utils/data/dataloader.py", "multiprocessing/reduction.py"], True),
        ("FileNotFoundError(2, 'none')", ["torch/utils/data/dataloader.py", "multiprocessing/connection.py"], True),
        ("OSError(24, 'too many files')", ["torch/utils/data/dataloader.py", "multiprocessing/connection.py"], False),
        ("ConnectionResetError(104, 'reset')", ["hub.py"], False),
    ],
)
def test_connection_to_a_data_loading_process_that_died(
    error: str, files: list[str], died: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system says when the process dies while it hands a batch over; elsewhere it is another matter."""
    source, last = (f"def outer(inner):\n    {line}\n" for line in ("inner()", f"raise {error}"))
    calls: list[Any] = []
    for file in files:
        made: dict[str, Any] = {}
        exec(compile(last if file == files[-1] else source, f"/lib/{file}", "exec"), made)
        calls.append(made["outer"])
    monkeypatch.setattr(core.cli, "_run", lambda words: calls[0](lambda: calls[-1](None)))
    with pytest.raises(SystemExit if died else OSError) as stopped:
        main(["cost", "resnet50"])
    assert ("a process that loads data died" in str(stopped.value)) == died


class _Stop(Callback):
    """A signal to this process in an epoch."""

    def __init__(self, number: int, epoch: int) -> None:
        self.number, self.epoch = number, epoch

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_is_resumed_by_the_command_it_names(
    number: int, status: int, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "photos.yaml", photos)
    with pytest.MonkeyPatch.context() as patch:
        add_callbacks(patch, _Stop(number, epoch=1))
        patch.setattr(sys, "argv", ["lightning"])
        with pytest.raises(SystemExit) as stopped:
            command("fit", config, tmp_path)
    assert stopped.value.code == status
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (run,) = runs(tmp_path)
    assert f"Saved {run}/checkpoints/last.ckpt. To resume, run: lightning fit " in printed
    main(shlex.split(printed.rpartition("run: lightning ")[2]))
    assert runs(tmp_path) == [run]
    assert saved(run)["epoch"] == 1
    assert len(metric(run, "val_acc")) == 2


def test_stopped_before_anything_was_saved(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_callbacks(monkeypatch, _Stop(signal.SIGTERM, epoch=0))
    with pytest.raises(SystemExit) as stopped:
        command("fit", write_config(tmp_path / "photos.yaml", photos), tmp_path)
    assert stopped.value.code == 143
    assert "nothing was saved; to start again, repeat the command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "names_it"),
    [([], False), (["--ckpt_path", "last"], True), (["--ckpt_path=last"], True)],
    ids=["new run", "resumed", "resumed, with ="],
)
def test_what_was_saved_before_belongs_to_a_resumed_run(words: list[str], names_it: bool, tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    text = resume_hint(last, ["fit", "-c", "a.yaml", *words], since=last.stat().st_mtime + 1)
    if names_it:
        assert text.endswith(f"run: lightning fit -c a.yaml --ckpt_path {last}")
    else:
        assert "nothing was saved" in text


def test_checkpoint_of_a_run_without_the_own_logger_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_callbacks(monkeypatch, Interrupt(1))
    config = write_config(tmp_path / "photos.yaml", photos, auto_augment=None)
    words = ["fit", "-c", str(config), "--trainer.logger", "false", "--trainer.default_root_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["lightning", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert stopped.value.code == 130
    assert f"stopped by Ctrl-C. Saved {last}. To resume, run: lightning fit" in capsys.readouterr().err
    assert last.is_file()


def test_what_ends_each_process_can_be_handed_to_spawned_ones() -> None:
    with terminable():  # whose handler is a function that cannot be pickled
        callback = SigtermCallback()
        copy = pickle.loads(pickle.dumps(callback))
    assert callable(callback.handler)
    assert copy.handler is None


def test_test_is_stopped_by_sigterm(trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Callback):
        def on_test_batch_end(self, *args: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    add_callbacks(monkeypatch, Stop())
    last = str(trained["folder"] / "checkpoints" / "last.ckpt")
    with pytest.raises(SystemExit) as stopped:
        command("test", trained["config"], tmp_path, "--ckpt_path", last)
    assert stopped.value.code == 143


def test_data_loading_process_that_dies(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(*args: Any) -> Any:
        assert get_worker_info() is not None
        os._exit(3)

    monkeypatch.setattr("vision.data.read_image", dies)
    config = write_config(tmp_path / "photos.yaml", photos, num_workers=1)
    with pytest.raises(SystemExit) as stopped:
        command("fit", config, tmp_path)
    message = str(stopped.value.code)
    assert message.startswith("lightning: error: a process that loads data died: DataLoader worker")
    assert "--data.num_workers" in message
    assert message.endswith("to start again, repeat the command.")
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_sweep_of_a_few_faults(tmp_path: Path) -> None:
    """The script itself, on real processes; the whole of it is in tests/README.md."""
    words = [
        "--config",
        "timeseries/configs/csv.yaml",
        "--fault",
        "SIGTERM",
        "kill -9",
        "disk full",
        "--verb",
        "--seed",
    ]
    results = tmp_path / "results.json"
    ended = subprocess.run(
        [sys.executable, str(SWEEP), *words, "1", "--results", str(results)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    happened = json.loads(results.read_text())["fit with"]["timeseries/configs/csv.yaml"]
    assert happened["SIGTERM"].startswith("143, ")
    assert happened["kill -9"].startswith("137, ")
    assert "1, resumed after epoch 0" in happened["disk full"]
