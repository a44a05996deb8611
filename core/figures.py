"""Matplotlib figures that need no display, for the pictures of a run and of the analyses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure", "plain"]


def new_figure(width: float = 7, height: float = 4.5, *, automatic: bool = True) -> Figure:
    """Make an empty figure, independent of any display and of pyplot.

    Args:
        width: width in inches.
        height: height in inches.
        automatic: let matplotlib place the contents, by its constrained layout.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes half a second, and few commands draw
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if automatic else None)
    FigureCanvasAgg(figure)
    return figure


def plain(name: str) -> str:
    """Return a name that the user gave, in a form that matplotlib draws as it is.

    Dollar signs would begin a formula, and bytes that are not UTF-8 cannot be drawn.
    """
    return printable(name).replace("$", r"\$")
