"""Write files and folders atomically: they are complete or absent, whatever interrupts the writing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["atomic_folder", "atomic_write"]


@contextmanager
def atomic_write(path: Path, *, keep_suffix: bool = False) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to ``path`` when the block ends without an error.

    The temporary file is in the same folder, because a rename is atomic only within one file system. Until the rename,
    ``path`` keeps its old content. An error leaves nothing behind; ``kill -9`` leaves a hidden file with ``.part`` in
    its name.

    Args:
        path: file to write; its folder is created if it does not exist.
        keep_suffix: give the temporary file the suffix of ``path``, for writers that choose a format by it.

    Raises:
        OSError: if the file cannot be written; the error names ``path``, not the temporary file.
    """
    suffix = path.suffix if keep_suffix else ""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        _flush_to_disk(unfinished)
        unfinished.replace(path)
    except OSError as error:
        # A full disk raises an error without a file name.
        if error.filename is None or Path(str(error.filename)) == unfinished:
            error.filename = str(path)
            error.filename2 = None
        raise
    finally:
        with suppress(OSError):
            unfinished.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, and rename it to ``path`` when the block ends without an error.

    An error leaves nothing behind; ``kill -9`` leaves a folder beside ``path`` that ends in ``.part`` and may be
    deleted. If several processes create the same folder at once, the first one wins.

    Args:
        path: a folder that does not exist, or is empty.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        try:
            unfinished.rename(path)
        except OSError:
            another_was_first = path.is_dir() and any(path.iterdir())
            if not another_was_first:
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    """Make sure that the content survives a power cut before the file gets its final name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
