"""What MkDocs does beside its plugins: pages from files outside ``docs``, links between them, a check at the end.

A page has the path of its file in the repository, and ``docs`` is the root. Links are written as the repository's pages
need them; those to files that are no page lose their link and keep their text. A line ``<!-- include FILE#SECTION -->``
in a page of ``docs`` is replaced with that section of a README, so that nothing is said twice.
"""

import ast
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

import zoo

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = ("*/README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PICTURES = ("benchmarks/results/*.png",)
NOTEBOOKS = ("notebooks/*.ipynb",)
API = {
    "core": "core/__init__.py",
    "core.backbones": "core/backbones/__init__.py",
    "core.reparam": "core/reparam.py",
    "core.ops": "core/ops/__init__.py",
    "core.analysis": "core/analysis/__init__.py",
    "core.training": "core/training/__init__.py",
    "core.training.hub": "core/training/hub.py",
    "vision": "vision/__init__.py",
    "vision.openmmlab": "vision/openmmlab/__init__.py",
    "audio": "audio/__init__.py",
    "pointcloud": "pointcloud/__init__.py",
    "video": "video/__init__.py",
    "timeseries": "timeseries/__init__.py",
    "multimodal": "multimodal/__init__.py",
}
INCLUDE = re.compile(r"^<!-- include (\S+)#(\S+) -->$", re.MULTILINE)
TABLE = re.compile(r"^<!-- zoo: (\w+) -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^ *```")
# what a browser would load by itself: not the target of a link
REMOTE = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc=[\"']?(?:https?:)?//[^\"' >]+"
    r"|<link\b(?=[^>]*rel=[\"']?(?:stylesheet|\w*preload|preconnect|icon))[^>]*?\bhref=[\"']?(?:https?:)?//[^\"' >]+"
    r"|@import\s+(?:url\()?[\"']?(?:https?:)?//[^\"' )]+|\burl\([\"']?(?:https?:)?//[^\"' )]+",
    re.IGNORECASE,
)


def public_names(file: str) -> list[str]:
    """Return the names in a module's ``__all__``; without one, its public classes and functions."""
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return list(ast.literal_eval(node.value))
    return [n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]


def section(text: str, anchor: str) -> str:
    """Return the text below the heading with this anchor, up to the next heading of any level."""
    lines = text.splitlines()
    fenced = False
    start = None
    for i, line in enumerate(lines):
        fenced ^= bool(FENCE.match(line))
        if fenced or not (heading := re.match(r"#+ (.*)", line)):
            continue
        if start is not None:
            return "\n".join(lines[start:i]).strip()
        if slug(heading[1]) == anchor:
            start = i + 1
    if start is None:
        raise ValueError(f"there is no section #{anchor}")
    return "\n".join(lines[start:]).strip()


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def site_path(path: str) -> str:
    """Return the place on the site of a file of the repository."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def relink(text: str, source: str, page: str, known: set[str]) -> str:
    """Return the text with its links as a page needs them.

    Args:
        text: Markdown of a file of the repository.
        source: path of this file in the repository, from which its links start.
        page: path of the page on the site.
        known: paths of all files on the site.
    """

    def new(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, hash_, anchor = target.partition("#")
        place = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
        for candidate in (place, f"{place}/README.md"):
            if candidate in known:
                relative = posixpath.relpath(candidate, posixpath.dirname(page) or ".")
                return f"{mark}[{label}]({relative}{hash_}{anchor})"
        if mark:
            raise ValueError(f"{source}: the picture {target} is not on the site")
        return label

    lines = []
    fenced = False
    for line in text.splitlines():
        fenced ^= bool(FENCE.match(line))
        lines.append(line if fenced or line.startswith("    ") else LINK.sub(new, line))
    return "\n".join(lines)


def remote_resources(html: str) -> list[str]:
    """Return what a browser would load from the network to show a page."""
    return REMOTE.findall(html)


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages that are not in ``docs``."""
    from mkdocs.structure.files import File

    for pattern in (*PAGES, *PICTURES, *NOTEBOOKS):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(("docs/", "site/")):
                files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for module, file in API.items():
        names = "\n\n".join(f"::: {module}.{name}" for name in public_names(file))
        files.append(File.generated(config, f"api/{module}.md", content=f"# {module}\n\n{names}\n"))
    return files


on_files.mkdocs_priority = 100  # before the plugin that turns notebooks into pages


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Include sections of READMEs and the tables of the zoo, and rewrite the links."""
    known = {file.src_uri for file in files}
    where = page.file.src_uri
    source = where if (ROOT / where).exists() else f"docs/{where}"

    def included(match: re.Match[str]) -> str:
        text = (ROOT / match[1]).read_text(encoding="utf-8")
        return relink(section(text, match[2]), match[1], where, known)

    markdown = INCLUDE.sub(included, relink(markdown, source, where, known))
    return TABLE.sub(lambda match: _table(match[1]), markdown)


def _table(name: str) -> str:
    return {"variants": zoo.variants, "speed": zoo.speed}[name]()


def on_page_content(html: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Take out what Sphinx would read in the docstrings: roles before names, and the colons before figures."""
    if not page.file.src_uri.startswith("api/"):
        return html
    return re.sub(r":[a-z]+:(?=<code>)", "", html).replace("<p>::</p>", "")


def on_post_build(config: "MkDocsConfig") -> None:
    """Refuse a site that would load something from the network."""
    from mkdocs.exceptions import PluginError

    for file in Path(config.site_dir).rglob("*.html"):
        if found := remote_resources(file.read_text(encoding="utf-8")):
            raise PluginError(f"{file} would load from the network: {found[:3]}")
