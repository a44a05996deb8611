"""Pickles of arrays, old ones too, and pickles that ask for more."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.small_sets import python2_pickle

from core.errors import InputError, MissingError
from core.io.untrusted import read_arrays

POINTS = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays(protocol: int, tmp_path: Path) -> None:
    content = ([POINTS, POINTS.astype(">f8")], [np.array([3]), np.int64(4)], {"a": (1, 2.5, "b", None, b"c")})
    (tmp_path / "a.dat").write_bytes(pickle.dumps(content, protocol))
    arrays, labels, rest = read_arrays(tmp_path / "a.dat")
    assert np.array_equal(arrays[0], POINTS)
    assert np.array_equal(arrays[1], POINTS.astype(np.float64))
    assert (labels, rest) == ([np.array([3]), 4], content[2])


class _Attack:
    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("function", [os.system, eval, __import__, os.mkdir])
def test_pickles_that_would_run_code(function: Any, protocol: int, tmp_path: Path) -> None:
    argument = {os.system: f"mkdir {tmp_path}/run", os.mkdir: f"{tmp_path}/run"}.get(
        function, f"os.mkdir('{tmp_path}/run')"
    )
    (tmp_path / "a.dat").write_bytes(pickle.dumps(([POINTS], [_Attack(function, argument)]), protocol))
    with pytest.raises(InputError, match=r"a\.dat asks for .* and is not opened further, since that could run code"):
        read_arrays(tmp_path / "a.dat")
    assert not (tmp_path / "run").exists()


def test_pickles_with_objects_or_damage(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(pickle.dumps([Path("a")]))
    with pytest.raises(InputError, match="asks for pathlib"):
        read_arrays(tmp_path / "a.dat")
    (tmp_path / "a.dat").write_bytes(pickle.dumps([POINTS])[:-30])
    with pytest.raises(InputError, match="cannot be read as a pickle"):
        read_arrays(tmp_path / "a.dat")
    with pytest.raises(MissingError, match="there is no"):
        read_arrays(tmp_path / "b.dat")


@pytest.mark.parametrize("args", [(np.ndarray, (10**9,), "f8"), (np.dtype, (0,), "b"), (np.ndarray, (0, 0), "b")])
def test_arrays_that_are_built_in_another_way(args: tuple[Any, ...], tmp_path: Path) -> None:
    build = POINTS.__reduce__()[0]
    (tmp_path / "a.dat").write_bytes(pickle.dumps(_Attack(build, *args)))
    with pytest.raises(InputError, match=r"a\.dat builds an array in an unusual way and is not opened further"):
        read_arrays(tmp_path / "a.dat")


def test_pickles_of_python_2(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 64)
    (tmp_path / "a.dat").write_bytes(python2_pickle({b"data": pixels, b"labels": [3, 300], b"names": [b"a.png"]}))
    content = read_arrays(tmp_path / "a.dat")
    assert np.array_equal(content.pop("data"), pixels)
    assert content == {"labels": [3, 300], "names": ["a.png"]}


def test_pickle_of_python_2_that_would_run_code(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(python2_pickle([_Attack(os.mkdir, str(tmp_path / "run"))]))
    with pytest.raises(InputError, match=r"asks for posix\.mkdir"):
        read_arrays(tmp_path / "a.dat")
    assert not (tmp_path / "run").exists()
