"""The output of an analysis: a table on the screen, and a picture and a JSON file in a folder."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import InputError
from core.io.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_output", "check_positive", "print_table", "write_report"]


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print a table with its first column aligned to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    for row in [head, rule, *rows]:
        first = row[0].ljust(widths[0])
        others = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([first, *others]).rstrip())


def check_output(output: str) -> None:
    """Check that the output folder can be written, before anything is measured.

    Raises:
        InputError: if the path is a file or below one, or there is no permission to write.
    """
    candidates = (Path(output), *Path(output).resolve().parents)
    existing = next(path for path in candidates if path.exists())
    if not existing.is_dir():
        raise InputError(f"--output {output} is a file, or below one; give a folder")
    if not os.access(existing, os.W_OK):
        raise InputError(f"--output {output} may not be written to; give another folder")


def check_positive(**numbers: int) -> None:
    """Check that options are at least 1.

    Raises:
        InputError: if one is not; the message names it.
    """
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"--{name} is {value}; give 1 or more")


def write_report(output: str, name: str, figure: "Figure | None", content: Any) -> None:
    """Write ``name``.json and, if there is a figure, ``name``.png into a folder, and print their paths."""
    table = Path(output) / f"{name}.json"
    with atomic_write(table) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if figure is None:
        print(f"wrote {table}")
        return

    picture = Path(output) / f"{name}.png"
    with atomic_write(picture) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    print(f"wrote {table} and {picture}")
