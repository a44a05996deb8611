"""How the tests run the notebooks: nbmake executes each .ipynb from its beginning, in a kernel of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
collect_ignore_glob = ["*.py"]  # looking for doctests would import the scripts, which runs them

os.environ.setdefault("TQDM_DISABLE", "1")  # as in the pages
os.environ.setdefault("OMP_NUM_THREADS", "1")  # kernels inherit it; the nets are too small for more


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks are slow tests."""
    for item in items:
        if getattr(item, "nbmake", False):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a notebook that leaves files where it stands."""
    before = _files()
    yield
    left = _files() - before
    if left:
        pytest.fail(f"{item.name} left {', '.join(sorted(left))}; write into a temporary folder", pytrace=False)


def _files() -> set[str]:
    return {path.name for path in HERE.iterdir()} - {"__pycache__", ".ipynb_checkpoints"}
