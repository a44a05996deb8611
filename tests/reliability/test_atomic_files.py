"""What is written is complete or absent; run folders belong to one run; damage in checkpoints is found."""

import errno
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from reliability.faults import DAMAGES, damage
from reliability.whole import damaged_files

from core.errors import InputError
from core.io.atomic import atomic_folder, atomic_write
from core.io.checkpoint import AtomicCheckpointIO
from core.io.untrusted import read_torch_file
from core.training.loggers import ResumableCSVLogger
from core.training.run_folder import _new_folder, new_run, only_writer


@contextmanager
def _small_files(size: int) -> Iterator[None]:
    """Writing beyond a size fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _half(path: Path, error: BaseException) -> None:
    path.write_text("ne")
    raise error


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as unfinished:
        unfinished.write_text("1")
        assert not path.exists()
        assert unfinished.parent == path.parent
    assert path.read_text() == "1"
    assert _names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_interrupted_writing_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path) as unfinished:
        _half(unfinished, error)
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


def test_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with _small_files(1000), pytest.raises(OSError, match="large") as failed, atomic_write(path) as unfinished:
        unfinished.write_bytes(bytes(5000))
    assert (failed.value.errno, failed.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["a.bin"]


def test_suffix_for_writers_that_go_by_it(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.onnx", keep_suffix=True) as unfinished:
        assert unfinished.suffix == ".onnx"
        unfinished.touch()
    with atomic_write(tmp_path / "a.ckpt") as unfinished:
        assert unfinished.suffix == ".part"
        unfinished.touch()


def test_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), atomic_folder(tmp_path / "a") as unfinished:
        _half(unfinished / "1", ValueError("x"))
    assert _names(tmp_path) == []
    with atomic_folder(tmp_path / "a") as unfinished:
        (unfinished / "1").touch()
        assert not (tmp_path / "a").exists()
    assert _names(tmp_path / "a") == ["1"]


def test_of_two_that_make_a_folder_the_first_one_s_stays(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as unfinished:
        (unfinished / "mine").touch()
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "theirs").touch()
    assert _names(tmp_path) == ["a"]
    assert _names(tmp_path / "a") == ["theirs"]


def _saved(path: Path) -> dict[str, object]:
    content = {"state_dict": {"w": torch.arange(50_000.0)}, "epoch": 3}
    AtomicCheckpointIO().save_checkpoint(content, path)
    return content


def test_checkpoint_survives_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    _saved(path)
    before = path.read_bytes()
    with _small_files(len(before) // 2), pytest.raises(OSError, match="large") as failed:
        _saved(path)
    assert failed.value.filename == str(path)
    assert path.read_bytes() == before
    assert _names(tmp_path) == ["last.ckpt"]


def test_checkpoint_is_written_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the system's folder for temporary files, from where it would be copied."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    _saved(tmp_path / "last.ckpt")
    assert read_torch_file(tmp_path / "last.ckpt")["epoch"] == 3


def test_leftover_of_a_killed_run_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.123.part").write_bytes(b"half")
    (tmp_path / ".best.ckpt.123.part").write_bytes(b"half")
    _saved(tmp_path / "last.ckpt")
    assert _names(tmp_path) == [".best.ckpt.123.part", "last.ckpt"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_checkpoint_is_refused(kind: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "last.ckpt", tmp_path / "ran"
    _saved(path)
    damage(path, kind, marker)
    with pytest.raises(InputError, match=r"last\.ckpt"):
        read_torch_file(path)
    assert not marker.exists()
    assert [line.partition(":")[0] for line in damaged_files(tmp_path)] == ["last.ckpt"]


def test_one_flipped_bit_is_named_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    _saved(path)
    damage(path, "flipped", tmp_path / "ran")
    torch.load(path, weights_only=True)  # torch takes it as it is
    with pytest.raises(InputError, match="is damaged: Bad CRC-32") as refused:
        read_torch_file(path)
    assert "best or last" in str(refused.value)


def test_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert {part.CRC for part in archive.infolist()} == {0}
    assert read_torch_file(tmp_path / "a.pth")["w"].tolist() == [1, 1, 1]


def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(_: int) -> str:
        monkeypatch.delenv("LARKIT_RUN", raising=False)
        return new_run(tmp_path)

    assert [begin(0), begin(1)] == ["version_0", "version_1"]  # making it takes it
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: _new_folder(tmp_path), range(24)))
    assert sorted(made) == sorted(tmp_path / f"version_{i}" for i in range(2, 26))


@pytest.mark.parametrize("kind", ["link to nowhere", "file"])
def test_what_stands_where_runs_should_lie_is_named(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "lightning_logs"
    place.symlink_to(tmp_path / "gone") if kind != "file" else place.write_text("")
    with pytest.raises(InputError, match=r"lightning_logs is not a folder.*--trainer.default_root_dir"):
        _new_folder(place / "ImageClassifier")


def test_second_process_in_a_run_folder_is_refused(tmp_path: Path) -> None:
    hold = (
        "import sys\nfrom pathlib import Path\nfrom core.training.run_folder import only_writer\n"
        "with only_writer(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"is in use: process {other.pid} on ") as refused, only_writer(tmp_path):
            pass
        assert "--ckpt_path" in str(refused.value)
        other.kill()
    with only_writer(tmp_path):  # the system forgets the lock of a process that was killed
        pass


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "file", "folder", "pipe"])
def test_lock_that_is_no_lock_is_refused_and_left_as_it_is(kind: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lock = run / ".lock"
    other = tmp_path / "other"
    other.write_text("precious")
    if kind == "link":
        lock.symlink_to(other)
    elif kind == "dangling link":
        lock.symlink_to(tmp_path / "gone")
    elif kind == "hard link":
        other.write_text("")
        lock.hardlink_to(other)
    elif kind == "file":
        lock.write_text("precious")
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)

    before = other.read_text()
    with pytest.raises(InputError, match=r"\.lock is not the lock of a run"), only_writer(run):
        pass
    assert other.read_text() == before
    assert not (tmp_path / "gone").exists()
    if kind == "file":
        assert lock.read_text() == "precious"


def test_table_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("step,x\n0,5.0\n")
    file = tmp_path / "a" / "b" / "metrics.csv"
    file.parent.mkdir(parents=True)
    file.symlink_to(other)
    logger = ResumableCSVLogger(tmp_path, "a", "b")
    logger.log_metrics({"x": 2.0}, step=1)
    logger.save()
    assert other.read_text() == "step,x\n0,5.0\n"
    assert file.read_text().split() == ["step,x", "0,5.0", "1,2.0"]


def test_resumed_table_goes_on_after_the_last_whole_row(tmp_path: Path) -> None:
    logger = ResumableCSVLogger(tmp_path, "a", "b")
    logger.log_metrics({"x": 1.0}, step=0)
    logger.save()
    file = tmp_path / "a" / "b" / "metrics.csv"
    file.write_text(file.read_text() + "0,7")  # kill -9 within a row
    logger = ResumableCSVLogger(tmp_path, "a", "b")
    logger.log_metrics({"x": 2.0, "y": 3.0}, step=1)
    logger.save()
    assert file.read_text().split() == ["step,x,y", "0,1.0,", "1,2.0,3.0"]
    assert _names(file.parent) == ["metrics.csv"]
