"""A report as its reader sees it, for the tests of reports."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


class Page(HTMLParser):
    """What a reader sees of a page: its sections, each with its tables, texts and pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.sections: dict[str, dict[str, Any]] = {}
        self._open: list[str] = []
        self._now: dict[str, Any] = {"tables": [], "texts": [], "pictures": []}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "section":
            self._now = {"tables": [], "texts": [], "pictures": []}
        elif tag == "table":
            self._now["tables"].append([])
        elif tag == "tr":
            self._now["tables"][-1].append([])
        elif tag in ("th", "td"):
            self._now["tables"][-1][-1].append("")
        elif tag == "img":
            content = base64.b64decode((dict(attrs)["src"] or "").removeprefix("data:image/png;base64,"))
            self._now["pictures"].append(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag  # every tag is closed in its place

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "h2":
            self.sections[data] = self._now
        elif inside in ("td", "th"):
            self._now["tables"][-1][-1][-1] += data
        elif inside != "style" and data.strip():
            self._now["texts"].append(data.strip())


def rows_of(page: Page, section: str, table: int = 0) -> dict[str, list[str]]:
    """The cells of each row of a table, by its first cell."""
    head, *rows = page.sections[section]["tables"][table]
    assert all(len(row) == len(head) for row in rows)
    return {row[0]: row[1:] for row in rows}


def report_of(run: Path) -> Page:
    """The report of a run."""
    return Page((run / "report.html").read_text(encoding="utf-8"))
