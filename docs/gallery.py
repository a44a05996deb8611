"""Draws docs/gallery.png from the run folders that the commands of the README's table leave.

Run, where these commands were run: python docs/gallery.py lightning_logs

Each task's newest picture goes, with its title, to the shorter of two columns.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SHEETS = {
    "Detector": ("examples", "Detection: digits on photos, marked and found"),
    "Segmenter": ("examples", "Segmentation: photo, marked, found"),
    "AudioClassifier": ("examples", "Sound: log-mel maps of words"),
    "ForecastTask": ("forecasts", "Series: 24 hours of weather ahead"),
    "VideoClassifier": ("examples", "Video: camera moves"),
    "PointCloudClassifier": ("examples", "Point clouds: views of digits"),
}
"""Tasks, the picture of each that is shown, and its title."""

WIDTH, MARGIN, TITLE = 640, 16, 34


def newest(runs: Path, task: str, picture: str) -> Image.Image:
    """The picture of the task's latest run, scaled to the width of a column."""
    files = sorted((runs / task).glob(f"*/{picture}.png"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise SystemExit(f"no {picture}.png below {runs / task}; run the task's command of the README there first")
    image = Image.open(files[-1]).convert("RGB")
    return image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)


def columns(sheets: list[tuple[str, Image.Image]]) -> list[list[tuple[str, Image.Image]]]:
    """Each sheet in the column that is shorter so far."""
    found: list[list[tuple[str, Image.Image]]] = [[], []]
    for sheet in sheets:
        min(found, key=height).append(sheet)
    return found


def height(column: list[tuple[str, Image.Image]]) -> int:
    """Pixels of a column with its titles."""
    return sum(TITLE + image.height + MARGIN for _, image in column)


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, help="the folder lightning_logs")
    runs = parser.parse_args().runs
    found = columns([(title, newest(runs, task, picture)) for task, (picture, title) in SHEETS.items()])
    sheet = Image.new("RGB", (2 * WIDTH + 3 * MARGIN, max(map(height, found)) + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(19)
    for i, column in enumerate(found):
        left, top = MARGIN + i * (WIDTH + MARGIN), MARGIN
        for title, image in column:
            draw.text((left, top), title, "black", font)
            sheet.paste(image, (left, top + TITLE))
            top += TITLE + image.height + MARGIN
    sheet.quantize(200).save(Path(__file__).parent / "gallery.png", optimize=True)


if __name__ == "__main__":
    main()
