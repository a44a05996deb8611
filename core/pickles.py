"""Pickles from others, read without running what they ask for: numpy arrays, numbers and containers, nothing else."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import InputError, MissingError

__all__ = ["read_arrays"]


def read_arrays(path: Path) -> Any:
    """The content of a pickle that holds numpy arrays, numbers and texts in lists, tuples and dicts.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file is damaged, or asks for anything else; nothing of it has been run then.
    """
    if not path.is_file():
        raise MissingError(f"there is no {path}; download it, or correct the folder")
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()  # texts of Python 2, among them arrays, are bytes
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    except Exception as error:  # whatever a damaged pickle makes of its stack
        raise InputError(f"{path} cannot be read as a pickle: {error!r}; download it again") from error


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """What arrays are rebuilt with, under the names that numpy has given it over time."""
        module = module.replace("numpy._core", "numpy.core")
        admitted: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in admitted:
            raise InputError(
                f"asks for {module}.{name} and is not opened further, since that could run code; only numpy arrays, "
                "numbers and containers are read. Save it again as arrays alone"
            )
        return admitted[module, name]


def _reconstruct(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    """An empty array, which the pickle then fills."""
    if kind is not np.ndarray or shape != (0,):
        raise InputError("builds an array in an unusual way and is not opened further; save it again with numpy")
    return np.empty(0, dtype)


def _scalar(dtype: np.dtype, value: bytes) -> Any:
    return np.frombuffer(value, _plain(dtype), 1)[0]


def _from_buffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(buffer, _plain(dtype)).reshape(shape, order=order)


def _plain(dtype: np.dtype) -> np.dtype:
    if dtype.hasobject:
        raise InputError("holds arrays of objects; only arrays of numbers are read. Save it again as numbers")
    return dtype


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, as pickles of protocol 2 write them."""
    return text.encode("latin1" if encoding == "latin1" else "ascii")
