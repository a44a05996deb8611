"""Files and folders that are there whole or not at all, whatever interrupts the writing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["whole_file", "whole_folder"]


@contextmanager
def whole_file(path: Path, *, keep_suffix: bool = False) -> Iterator[Path]:
    """A file to write in place of ``path``, which it becomes when the block ends well.

    It lies in the same folder, since only within one file system does a file get its name in one step. Until then
    ``path`` is what it was; after an error nothing is left, after ``kill -9`` a hidden file that ends in ``.part``.

    Args:
        path: what is to be written; its folder is made.
        keep_suffix: end the unfinished file like ``path``, for writers that choose a format by it.

    Raises:
        OSError: of the writing, naming ``path``.
    """
    ending = f".part{path.suffix}" if keep_suffix else ".part"
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        if error.filename is None or Path(str(error.filename)) == unfinished:
            error.filename, error.filename2 = str(path), None  # a full disk has no name otherwise
        raise
    finally:
        with suppress(OSError):
            unfinished.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill in place of ``path``, which it becomes when the block ends well.

    After an error nothing is left, after ``kill -9`` a folder beside it that ends in ``.part`` and may be deleted. Of
    several processes that make the same folder at once the first one's stays.

    Args:
        path: a folder that is not there, or empty.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        try:
            unfinished.rename(path)
        except OSError:
            if not (path.is_dir() and any(path.iterdir())):  # else another process was first
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
