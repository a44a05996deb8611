"""What an analysis leaves: a table on the screen, a picture and a JSON file in a folder."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import InputError
from core.writing import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_output", "check_positive", "print_table", "write_report"]


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print rows below their heads, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]]
        print("  ".join(cells).rstrip())


def check_output(output: str) -> None:
    """Refuse before anything is measured what could not be written after it.

    Raises:
        InputError: if the folder cannot be one.
    """
    existing = next(path for path in (Path(output), *Path(output).resolve().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"--output {output} is a file, or below one; give a folder")
    if not os.access(existing, os.W_OK):
        raise InputError(f"--output {output} may not be written to; give another folder")


def check_positive(**numbers: int) -> None:
    """Refuse options below 1.

    Raises:
        InputError: naming the option.
    """
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"--{name} is {value}; give 1 or more")


def write_report(output: str, name: str, figure: "Figure | None", content: Any) -> None:
    """Write ``name``.json and, if there is a figure, ``name``.png into a folder, and say so."""
    folder = Path(output)
    table = folder / f"{name}.json"
    with whole_file(table) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if figure is None:
        print(f"wrote {table}")
        return
    picture = folder / f"{name}.png"
    with whole_file(picture) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    print(f"wrote {table} and {picture}")
