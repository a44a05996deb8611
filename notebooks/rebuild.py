"""Run the scripts as notebooks and write their pages: ``python notebooks/rebuild.py [NAME ...]``, by default all."""

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def rebuild(script: Path) -> nbformat.NotebookNode:
    """The executed notebook of a script, without what would differ with each run: times, versions, random ids."""
    notebook = jupytext.read(script)
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", {}
    resources = {"metadata": {"path": str(HERE)}}
    NotebookClient(notebook, timeout=300, record_timing=False, resources=resources).execute()
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return notebook


def main(names: list[str]) -> None:
    """Rebuild the named notebooks, and say how long each took."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the nets are so small that threads cost more than they save
    os.environ.setdefault("CUDA_PATH", "")  # else torch warns on a machine with CUDA's compiler and without a GPU
    for script in [HERE / f"{name}.py" for name in names] or sorted(HERE.glob("[0-9]*.py")):
        start = time.perf_counter()
        notebook = rebuild(script)
        page = script.with_suffix(".ipynb")
        nbformat.write(notebook, page)
        print(f"{page.name}: {time.perf_counter() - start:.0f} s, {page.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main([Path(name).stem for name in sys.argv[1:]])
