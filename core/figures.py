"""Figures without a display: for the pictures of a run and of the analyses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure", "plain"]


def new_figure(width: float = 7, height: float = 4.5, *, automatic: bool = True) -> Figure:
    """An empty figure in inches, without a display or pyplot's state; ``automatic`` lets matplotlib lay it out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second to import, and only some verbs draw
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if automatic else None)
    FigureCanvasAgg(figure)
    return figure


def plain(name: str) -> str:
    """Return a name of the user's, such as a class, channel or file, so that matplotlib draws its dollar signs."""
    return printable(name).replace("$", r"\$")
