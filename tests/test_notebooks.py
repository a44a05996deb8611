"""What is committed of the notebooks: a page and its script agree, and the page shows what a run showed.

The pages themselves are run by nbmake, which collects them in ``notebooks/``.
"""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupytext.compare import compare_notebooks

FOLDER = Path(__file__).parents[1] / "notebooks"
PAGES = sorted(FOLDER.glob("*.ipynb"))
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
LIMIT = 250_000  # bytes of a page with its pictures
PRIVATE = re.compile(r"(?<![\w.])/(?:tmp|home|root|Users|private|var/folders|work)/\S*|[A-Z]:\\\S*")


def _code(page: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(page, as_version=4).cells if cell.cell_type == "code"]


def _texts(cell: nbformat.NotebookNode) -> list[str]:
    """Everything that a cell's outputs say in letters."""
    found = []
    for output in cell.outputs:
        found += [output.get("text", ""), *map(str, output.get("traceback", []))]
        found += [str(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
    return found


def test_each_script_has_its_page() -> None:
    assert [page.stem for page in PAGES] == sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
    assert PAGES


@pages
def test_page_and_script_agree(page: Path) -> None:
    """If not: ``python notebooks/rebuild.py NAME``."""
    script = jupytext.read(page.with_suffix(".py"))
    written = nbformat.read(page, as_version=4)
    script.metadata = written.metadata  # the scripts have none
    compare_notebooks(written, script, "py:percent")


@pages
def test_page_was_run_from_its_beginning(page: Path) -> None:
    cells = _code(page)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert "error" not in kinds
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


@pages
def test_page_shows_no_warnings_and_nobodys_paths(page: Path) -> None:
    for cell in _code(page):
        assert [output.text for output in cell.outputs if output.get("name") == "stderr"] == []
        assert [found for text in _texts(cell) for found in PRIVATE.findall(text)] == []


@pages
def test_page_is_small(page: Path) -> None:
    assert page.stat().st_size < LIMIT


@pages
def test_ids_stay_when_a_page_is_rebuilt(page: Path) -> None:
    cells = nbformat.read(page, as_version=4).cells
    assert [cell.id for cell in cells] == [f"cell-{number:02d}" for number in range(len(cells))]


def test_the_readme_has_a_row_for_each_page() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.ipynb\) \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.M)
    assert [name for name, _ in rows] == [file for _, file in rows] == [page.stem for page in PAGES]
