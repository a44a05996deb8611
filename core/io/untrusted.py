"""Read untrusted files: nothing in them is executed, and damage is detected before they are used."""

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from core.errors import InputError, MissingError

__all__ = ["check_yaml", "parse_yaml", "read_arrays", "read_torch_file", "restricted_pickles"]

_CHUNK = 2**24  # bytes
_YAML_DEPTH = 64
"""Deepest nesting of lists and mappings in a YAML file."""
_YAML_VALUES = 1_000_000
"""Largest number of values in a YAML file after its references are expanded."""


def read_torch_file(path: Path) -> Any:
    """Read a file that ``torch.save`` wrote; only tensors, numbers, texts and containers are accepted.

    ``torch.load`` does not verify the checksums inside the file, so a flipped bit would silently become a wrong weight.
    They are verified here first, at the speed of reading.

    Args:
        path: file to read.

    Returns:
        The content, with tensors on the CPU.

    Raises:
        InputError: if torch cannot read the file, if it is damaged, or if it would execute code.
    """
    damage = _failed_checksum(path)
    if damage is not None:
        raise InputError(
            f"{path} is damaged: {damage}. Copy or download it again, or take another checkpoint of the run, best or "
            "last"
        )
    try:
        # The official training scripts store their arguments as a Namespace, which is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if unsafe:
            raise InputError(
                f"{path} holds Python objects beside tensors ({', '.join(unsafe)}) and is not opened, since that could "
                "run code; save its tensors alone with torch.save(state_dict, ...) in an environment you trust"
            ) from error
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0]
        raise InputError(f"{path} is not a checkpoint that torch or safetensors can read: {reason}") from error
    except Exception as error:
        reason = str(error).partition(". This is commonly")[0] or type(error).__name__
        raise InputError(f"{path} is not a checkpoint that torch or safetensors can read: {reason}") from error


def _failed_checksum(path: Path) -> str | None:
    """Verify the checksums inside a zip file, and describe the damage; None if they match or the file has none."""
    if not zipfile.is_zipfile(path):
        return None

    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if not part.CRC:  # torch.serialization.set_crc32_options(False) writes none
                    continue
                with archive.open(part) as content:
                    while content.read(_CHUNK):  # zipfile compares the checksum as it reads
                        pass
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


@contextmanager
def restricted_pickles() -> Iterator[None]:
    """Make every ``torch.load`` of this process and its children refuse code, even if a library would allow it.

    MMEngine, for example, loads the file named in the ``init_cfg`` of a config without the restriction.
    """
    force = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    prevent = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (force, prevent)}

    os.environ[force] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def parse_yaml(text: str, source: object) -> Any:
    """Parse YAML whose anchors and nesting are bounded.

    Args:
        text: content of the file.
        source: name of the file in messages.

    Raises:
        InputError: if the text is not YAML, refers to itself, is nested too deeply, or expands to too many values.
    """
    check_yaml(text, source)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # impossible dates and numbers raise ValueError
        raise InputError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def check_yaml(text: str, source: object) -> None:
    """Refuse YAML that is small on disk but huge or endless in memory; other errors are left to the parser.

    Nine nested anchors of nine references each stand for about a billion values, and an anchor that contains itself
    stands for infinitely many. The text is read as a stream of events, in which references are not expanded.

    Args:
        text: content of the file.
        source: name of the file in messages.

    Raises:
        InputError: if the text refers to itself, is nested too deeply, or expands to too many values.
    """
    sizes: dict[str | None, int] = {}  # number of values below each anchor
    anchors: list[str | None] = []  # anchors of the open collections, or None
    counts = [0]  # number of values so far in the document, and in each open collection
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                if event.anchor in anchors:
                    raise InputError(f"{source} refers to itself: *{event.anchor} stands within &{event.anchor}")
                counts[-1] += sizes.get(event.anchor, 1)
            elif isinstance(event, yaml.ScalarEvent):
                counts[-1] += 1
                if event.anchor is not None:
                    sizes[event.anchor] = 1
            elif isinstance(event, yaml.CollectionStartEvent):
                anchors.append(event.anchor)
                counts.append(1)
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor = anchors.pop()
                size = counts.pop()
                counts[-1] += size
                if anchor is not None:
                    sizes[anchor] = size

            if len(anchors) > _YAML_DEPTH:
                raise InputError(f"{source} is nested more than {_YAML_DEPTH} levels deep, which no setting needs")
            if counts[-1] > _YAML_VALUES:
                raise InputError(f"{source} grows beyond {_YAML_VALUES:,} values by its anchors (&) and references (*)")
    except yaml.YAMLError:
        return


def read_arrays(path: Path) -> Any:
    """Read a pickle of numpy arrays, numbers and strings in lists, tuples and dicts; nothing else is accepted.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file is damaged or holds anything else, none of which is executed.
    """
    if not path.is_file():
        raise MissingError(f"there is no {path}; download it, or correct the folder")
    try:
        with path.open("rb") as file:
            # Pickles of Python 2 hold strings and the content of arrays as bytes.
            return _ArrayUnpickler(file, encoding="latin1").load()
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"{path} cannot be read as a pickle: {error!r}; download it again") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that finds only the functions that rebuild arrays, under their names in any version of numpy."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        module = module.replace("numpy._core", "numpy.core")
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise InputError(
                f"asks for {module}.{name} and is not opened further, since that could run code; only numpy arrays, "
                "numbers and containers are read. Save it again as arrays alone"
            )
        return allowed[module, name]


def _empty_array(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    """Replacement for numpy's ``_reconstruct``: makes an empty array, which the pickle then fills."""
    if kind is not np.ndarray or shape != (0,):
        raise InputError("builds an array in an unusual way and is not opened further; save it again with numpy")
    return np.empty(0, dtype)


def _scalar(dtype: np.dtype, value: bytes) -> Any:
    """Replacement for numpy's ``scalar``, for numbers alone."""
    return np.frombuffer(value, _without_objects(dtype), 1)[0]


def _array_from_buffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """Replacement for numpy's ``_frombuffer``, for arrays of numbers alone."""
    return np.frombuffer(buffer, _without_objects(dtype)).reshape(shape, order=order)


def _without_objects(dtype: np.dtype) -> np.dtype:
    """Return the dtype, and raise an error if its values are Python objects."""
    if dtype.hasobject:
        raise InputError("holds arrays of objects; only arrays of numbers are read. Save it again as numbers")
    return dtype


def _encode(text: str, encoding: str) -> bytes:
    """Replacement for ``codecs.encode``, with which pickles of protocol 2 rebuild bytes."""
    return text.encode("latin1" if encoding == "latin1" else "ascii")
