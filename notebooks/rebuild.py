"""Run the scripts as notebooks and write their pages: ``python notebooks/rebuild.py [NAME ...]``, by default all."""

import os
import sys
import time
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def rebuild(script: Path) -> nbformat.NotebookNode:
    """The executed notebook of a script, without what would differ with each run: times, versions, random ids."""
    notebook = jupytext.read(script)
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", {}
    resources = {"metadata": {"path": str(HERE)}}
    NotebookClient(notebook, timeout=300, record_timing=False, coalesce_streams=True, resources=resources).execute()
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = small_png(output.data["image/png"])
            output.data.pop("image/jpeg", None)  # PIL gives its images in both formats
    return notebook


def small_png(picture: str) -> str:
    """A picture in base64 with a palette of 256 colors: a half to a quarter of its bytes, and hardly another look."""
    written = BytesIO()
    with Image.open(BytesIO(b64decode(picture))) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(written, "png", optimize=True)
    return b64encode(written.getvalue()).decode()


def main(names: list[str]) -> None:
    """Rebuild the named notebooks, and say how long each took."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the nets are so small that threads cost more than they save
    os.environ.setdefault("TQDM_DISABLE", "1")  # pages show no progress
    os.environ.setdefault("CUDA_PATH", "")  # else torch warns on a machine with CUDA's compiler and without a GPU
    for script in [HERE / f"{name}.py" for name in names] or sorted(HERE.glob("[0-9]*.py")):
        start = time.perf_counter()
        notebook = rebuild(script)
        page = script.with_suffix(".ipynb")
        nbformat.write(notebook, page)
        print(f"{page.name}: {time.perf_counter() - start:.0f} s, {page.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main([Path(name).stem for name in sys.argv[1:]])
