"""The pages of the site that are made when it is built, and what keeps it readable without a network."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import hooks  # noqa: E402
import zoo  # noqa: E402

TEXT = """# A page

## Your own photos

See [boxes](#your-own-boxes), [audio](../audio/README.md#your-own-recordings),
[code](task.py) and ![a map](../docs/map.png).

```python
x = maps[0](task.py)
```

### More

Below.

## CIFAR

Else.
"""
KNOWN = {"audio/README.md", "map.png", "index.md", "own/photos.md"}


def test_a_section_ends_at_the_next_heading() -> None:
    section = hooks.section(TEXT, "your-own-photos")
    assert section.startswith("See [boxes]")
    assert section.endswith("```")
    assert hooks.section(TEXT, "more") == "Below."
    assert hooks.section(TEXT, "cifar") == "Else."
    with pytest.raises(ValueError, match="there is no section #cifar-10"):
        hooks.section(TEXT, "cifar-10")


def test_links_follow_a_text_to_its_page() -> None:
    text = hooks.relink(TEXT, "vision/README.md", "own/photos.md", KNOWN)
    assert "[boxes](#your-own-boxes)" in text
    assert "[audio](../audio/README.md#your-own-recordings)" in text
    assert "![a map](../map.png)" in text
    assert "\ncode and" in text  # a file that is no page
    assert "maps[0](task.py)" in text  # no link


def test_links_of_pages_name_files_of_the_repository() -> None:
    assert hooks.relink("[r](../../README.md)", "docs/own/photos.md", "own/photos.md", KNOWN) == "[r](../index.md)"
    assert hooks.relink("[a](../../audio)", "docs/own/photos.md", "own/photos.md", KNOWN) == "[a](../audio/README.md)"
    assert hooks.relink("[p](own/photos.md)", "docs/index.md", "index.md", KNOWN) == "[p](own/photos.md)"
    with pytest.raises(ValueError, match=r"gone\.png is not on the site"):
        hooks.relink("![g](gone.png)", "docs/index.md", "index.md", KNOWN)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_links_and_sections_of_the_pages_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for file, anchor in hooks.INCLUDE.findall(text):
        assert hooks.section((ROOT / file).read_text(encoding="utf-8"), anchor)
    made = {f"{module}.md" for module in hooks.API}
    for _, _, target in hooks.LINK.findall(text):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists() or Path(target).name in made, target


@pytest.mark.parametrize(
    "html",
    [
        '<script async src="https://cdn.example/x.js"></script>',
        '<link href="//fonts.example/css" rel="stylesheet">',
        "<img alt='' src='http://example.org/a.png'>",
        "<style>@import url(https://example.org/a.css)</style>",
        "<style>a { background: url('https://example.org/a.png') }</style>",
    ],
)
def test_remote_resources_are_found(html: str) -> None:
    assert hooks.remote_resources(html)


def test_links_to_other_sites_are_no_resources() -> None:
    html = '<a href="https://arxiv.org"></a><link rel="canonical" href="https://example.org/"><img src="a.png">'
    assert not hooks.remote_resources(html)


def test_public_names_are_those_of_all_or_without_underscore() -> None:
    assert hooks.public_names("vision/__init__.py")[:2] == ["CIFAR10", "CIFAR100"]
    names = hooks.public_names("core/training/hub.py")
    assert {"from_pretrained", "save_pretrained", "push_to_hub"} <= set(names)
    assert not [name for name in names if name.startswith("_")]


def test_the_zoo_has_a_row_for_each_published_file() -> None:
    rows = {row[0].strip("`"): row for row in zoo.rows()}
    variants = timm.list_models("*replknet_*")
    named = {name for variant in variants for name in timm.list_pretrained(f"{variant}.*")}
    assert named - set(rows) == set()
    assert {name.partition(".")[0] for name in rows} == {name for name in variants if not name.startswith("test_")}
    assert rows["unireplknet_t.in1k"][1:] == ["224", "31.0 M", "4.9", "83.2", "by name"]
    assert rows["replknet_31b.in1k_384"][1:5] == ["384", "79.5 M", "45.3", "84.8"]
    assert rows["replknet_31b.in22k"][4] == ""
    assert rows["replknet_31b.in22k"][5].startswith("[by hand](https://")


def test_the_zoo_has_the_measured_speed() -> None:
    lines = zoo.speed().splitlines()
    assert len(lines) > 3
    assert any("`unireplknet_t`, inference" in line and "| float32 |" in line for line in lines)


def test_api_pages_show_no_marks_of_sphinx() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="api/core.md"))
    html = "<p>See :func:<code>fold</code>.</p><p>::</p><p>a :class: b</p>"
    assert hooks.on_page_content(html, page, None, None) == "<p>See <code>fold</code>.</p><p>a :class: b</p>"
    page.file.src_uri = "index.md"
    assert hooks.on_page_content(html, page, None, None) == html
