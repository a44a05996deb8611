"""Files that ``torch.save`` wrote, from anybody: nothing in them runs, and damage is found before it is used."""

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from core.errors import InputError

__all__ = ["read_torch_file", "restricted_pickles"]

_CHUNK = 2**24


def read_torch_file(path: Path) -> Any:
    """The content on the CPU; tensors, numbers, texts and containers, nothing else.

    ``torch.load`` does not compare the checksums in the file, so that a bit that fell over on a disk or on the way
    would become a weight. They are compared here first, at the speed of reading.

    Raises:
        InputError: if the file is no such file, is damaged, or asks for code.
    """
    if damage := _damage(path):
        raise InputError(
            f"{path} is damaged: {damage}. Copy or download it again, or take another checkpoint of the run, best or "
            "last"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the official training scripts store their args
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if not unsafe:
            reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0]
            raise InputError(f"{path} is not a checkpoint that torch or safetensors can read: {reason}") from error
        raise InputError(
            f"{path} holds Python objects beside tensors ({', '.join(unsafe)}) and is not opened, since that could run "
            "code; save its tensors alone with torch.save(state_dict, ...) in an environment you trust"
        ) from error
    except Exception as error:
        reason = str(error).partition(". This is commonly")[0] or type(error).__name__
        raise InputError(f"{path} is not a checkpoint that torch or safetensors can read: {reason}") from error


def _damage(path: Path) -> str | None:
    """What is wrong with a zip file's content by its own checksums; None for other files, which have none."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.CRC:  # torch.serialization.set_crc32_options(False) writes none
                    with archive.open(part) as content:
                        while content.read(_CHUNK):
                            pass
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


@contextmanager
def restricted_pickles() -> Iterator[None]:
    """Make every ``torch.load`` of this process and those it starts refuse code, also where a library allows it.

    MMEngine, for one, loads what a config's ``init_cfg`` names without the restriction.
    """
    force, other = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (force, other)}
    os.environ[force] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
