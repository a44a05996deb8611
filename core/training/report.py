"""The page that a run leaves: sections of text, tables and pictures in one HTML file, which needs no network."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import torch
from lightning import Trainer
from lightning.fabric.utilities import move_data_to_device
from PIL import Image

from core.data.module import PlacedDataset
from core.data.samples import sample_name
from core.errors import InputError, printable
from core.io.atomic import atomic_write
from core.training.plots import rendered
from core.training.run_folder import from_here, run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Block",
    "Card",
    "Cards",
    "Figures",
    "Picture",
    "Preformatted",
    "Section",
    "Table",
    "Text",
    "as_png",
    "default_sections",
    "figure_picture",
    "interval",
    "logged_figures",
    "number",
    "picture_sections",
    "render_page",
    "shown_sample",
    "table_sections",
    "takes_page",
    "write_page",
]

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_LONGEST = 224
"""Longer side of the picture of a sample, in pixels."""
_MOST_ROWS = 30
"""Tables with more rows are folded, and open by a click."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        head: names of the columns.
        rows: cells of each row.
        texts: number of columns, from the left, that hold words; the others hold numbers.
        note: a sentence below the table.
        title: text to click on if the table is folded, because it has many rows.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    note: str = ""
    title: str = "The table"

    @property
    def is_folded(self) -> bool:
        """Whether the table is shown after a click only."""
        return len(self.rows) > _MOST_ROWS


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        png: content of the PNG file.
        alt: what the picture shows, for readers who do not see it.
    """

    png: bytes
    alt: str

    @property
    def data(self) -> str:
        """The address that holds the picture itself."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Card:
    """A sample: its picture, if it can be shown, its name and lines of text."""

    name: str
    lines: Sequence[str]
    picture: Picture | None = None


@dataclass(frozen=True)
class Cards:
    """Samples side by side."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Preformatted:
    """Lines to copy, such as commands, or a file.

    Attributes:
        text: the lines.
        title: text to click on; without it the lines are always shown.
    """

    text: str
    title: str = ""


Block = Text | Table | Picture | Cards | Preformatted


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        title: its title.
        blocks: function that makes its content. It is called when the page is written, so that drawing and resampling
            are done once for a run and not once for each epoch.
    """

    title: str
    blocks: Callable[[], Sequence[Block]]


@dataclass
class Figures:
    """The table of the figures of an evaluation, beside those of simple baselines.

    Attributes:
        model: value of each figure, by its name.
        intervals: lower and upper end of the 95 percent interval of some figures, by the same names.
        baselines: values of each baseline, by the name of the baseline and that of the figure.
        notes: sentences below the table.
    """

    model: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def table(self) -> Table:
        """Return the table, with a row for each figure."""
        has_intervals = any(np.isfinite(ends).all() for ends in self.intervals.values())
        head = ["", "model", *(["95 % interval"] if has_intervals else []), *self.baselines]
        rows = []
        for name, value in self.model.items():
            cells = [name, number(value)]
            if has_intervals:
                cells.append(interval(self.intervals.get(name)))
            cells += [number(values.get(name)) for values in self.baselines.values()]
            rows.append(cells)
        return Table(head, rows, note=" ".join(self.notes))


def number(value: float | None) -> str:
    """Return a number with three decimals, or three digits if it is small or large; '' for None and NaN."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.3f}" if 0.01 <= abs(value) < 10 or value == 0 else f"{value:,.3g}"


def interval(ends: Sequence[float] | None) -> str:
    """Return an interval as text; an empty text if it is not known."""
    if ends is None or not np.isfinite(ends).all():
        return ""
    low, high = (number(float(end)) for end in ends)
    return f"{low} to {high}"


def as_png(pixels: np.ndarray, *, longest: int | None = None) -> bytes:
    """Return an image as the content of a PNG file.

    Args:
        pixels: (H, W), or (H, W, 3), uint8.
        longest: shrink a larger image until its longer side has this many pixels.
    """
    image = Image.fromarray(pixels)
    if longest is not None:
        image.thumbnail((longest, longest))
    content = io.BytesIO()
    image.save(content, format="png", optimize=True)
    return content.getvalue()


def figure_picture(figure: Figure, alt: str) -> Picture:
    """Return a figure as a picture."""
    return Picture(_compressed(Image.fromarray(rendered(figure))), alt)


def _compressed(image: Image.Image) -> bytes:
    """Return an image with 256 colors, as the content of a PNG file."""
    content = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(content, format="png", optimize=True)
    return content.getvalue()


def logged_figures(trainer: Trainer, split: str) -> dict[str, float]:
    """Return the metrics that were logged for a split, by name."""
    return {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith(f"{split}_")}


def default_sections(
    trainer: Trainer, split: str, baselines: Sequence[str], pictures: Mapping[str, str]
) -> list[Section]:
    """Return the sections that any task has: the logged figures beside those of its baselines, and its pictures.

    Args:
        trainer: trainer of the evaluation that has just ended.
        split: its split.
        baselines: names with which the metrics of the baselines end.
        pictures: title of each picture by its file name.
    """
    logged = logged_figures(trainer, split)
    of_baselines: dict[str, dict[str, float]] = {}
    for baseline in baselines:
        own = {name: value for name, value in logged.items() if name.endswith(f"_{baseline}")}
        logged = {name: value for name, value in logged.items() if name not in own}
        if own:
            of_baselines[baseline] = {name.removesuffix(f"_{baseline}"): value for name, value in own.items()}

    sections = []
    if logged:
        sections.append(Section("Results", lambda: [Figures(logged, baselines=of_baselines).table()]))
    return sections + picture_sections(trainer, pictures)


def picture_sections(trainer: Trainer, pictures: Mapping[str, str]) -> list[Section]:
    """Return a section for each picture in the run folder; its content is read now, since a later epoch replaces it."""
    folder = run_folder(trainer)
    sections = []
    for name, title in pictures.items():
        file = folder / f"{name}.png" if folder is not None else None
        if file is not None and file.is_file():
            sections.append(Section(title, partial(_stored_picture, file.read_bytes(), title)))
    return sections


def _stored_picture(content: bytes, title: str) -> list[Block]:
    """Return a picture in few bytes."""
    with Image.open(io.BytesIO(content)) as image:
        return [Picture(_compressed(image.convert("RGB")), title)]


def table_sections(trainer: Trainer, tables: Mapping[str, str]) -> list[Section]:
    """Return a section for each CSV file in the run folder; it is read now, since a later epoch replaces it.

    Args:
        trainer: trainer with the run folder.
        tables: title of each table by its file name.
    """
    folder = run_folder(trainer)
    sections = []
    for name, title in tables.items():
        file = folder / f"{name}.csv" if folder is not None else None
        if file is not None and file.is_file():
            sections.append(Section(title, partial(_stored_table, file.read_text(encoding="utf-8"), title)))
    return sections


def _stored_table(content: str, title: str) -> list[Block]:
    """Return the table of a CSV file, whose first columns hold words. Columns without a value are left out."""
    head, *rows = csv.reader(io.StringIO(content))
    filled = [i for i in range(len(head)) if any(row[i] for row in rows)]
    texts = next((place for place, i in enumerate(filled) if all(_is_number(row[i]) for row in rows)), len(filled))
    names = [head[i].replace("_", " ") for i in filled]
    return [Table(names, [[_shortened(row[i]) for i in filled] for row in rows], texts=texts, title=title)]


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _shortened(text: str) -> str:
    """Return a number with four digits; whole numbers and words as they are."""
    return f"{float(text):.4g}" if _is_number(text) and text.strip("-0123456789") else text


def shown_sample(task: Any, split: str, position: int) -> tuple[str, Picture | None]:
    """Return the name of a sample of an evaluation, and its picture if the task can show it.

    Args:
        task: a task with ``show``, which turns raw samples into pictures.
        split: the split.
        position: position of the sample in the split.
    """
    loaders = task.trainer.val_dataloaders if split == "val" else task.trainer.test_dataloaders
    loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
    placed = getattr(loader, "dataset", None)
    if not isinstance(placed, PlacedDataset):  # the order of a loader of the user is not known
        return f"sample {position}", None

    name = from_here(Path(sample_name(placed.dataset, position)))
    try:
        batch, _ = loader.collate_fn([placed[position]])
    except (InputError, OSError):  # the file is gone or broken since it was evaluated
        return name, None
    was_training = task.training
    task.eval()
    with torch.no_grad():
        raw, _ = task.unpack(move_data_to_device(batch, task.device))
        pictures = task.show(raw)
    task.train(was_training)
    if pictures is None:
        return name, None
    pixels = (pictures[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).squeeze(-1).cpu().numpy()
    return name, Picture(as_png(pixels, longest=_LONGEST), f"The sample {name}")


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the HTML of a report. All texts are escaped.

    Args:
        title: title of the page.
        subtitle: a line below it.
        sections: sections; those without content are left out.
    """
    made = [(section.title, list(section.blocks())) for section in sections]
    filled = [(name, [(type(block).__name__, block) for block in blocks]) for name, blocks in made if blocks]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(title=title, subtitle=subtitle, sections=filled)
    return printable(page)


def takes_page(trainer: Trainer) -> bool:
    """Return whether there is a run folder, or a logger that takes pages."""
    return run_folder(trainer) is not None or any(_page_method(logger) for logger in trainer.loggers)


def write_page(trainer: Trainer, page: str, name: str = "report") -> Path | None:
    """Write a page to ``<name>.html`` in the run folder, and send it to every logger that takes pages.

    Returns:
        The path of the file, or None if there is no run folder.
    """
    for logger in trainer.loggers:
        send = _page_method(logger)
        if send is not None:
            send(name, page)

    folder = run_folder(trainer)
    if folder is None:
        return None
    path = folder / f"{name}.html"
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def _page_method(logger: Any) -> Callable[[str, str], object] | None:
    """Return the function by which a logger takes the name and the HTML of a page, if any; TensorBoard has none."""
    experiment: Any = getattr(logger, "experiment", None)
    if callable(getattr(logger, "log_image", None)) and callable(getattr(experiment, "log", None)):  # Weights & Biases
        return lambda name, page: experiment.log({name: import_module("wandb").Html(page)})
    if callable(getattr(experiment, "log_text", None)) and getattr(logger, "run_id", None):  # MLflow
        return lambda name, page: experiment.log_text(logger.run_id, page, f"{name}.html")
    return None
