"""Who may import whom: the core knows no modality, the nets need no lightning, OpenMMLab stays in one folder."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["core", "vision", "audio", "pointcloud", "timeseries", "video", "multimodal"]
MODALITIES = [name for name in PACKAGES[1:] if (ROOT / name).is_dir()]
FOLDERS = ["analysis", "backbones", "layers", "ops"]
WITHOUT_LIGHTNING = [
    *sorted((ROOT / "core").glob("*.py")),
    *[file for folder in FOLDERS for file in sorted((ROOT / "core" / folder).rglob("*.py"))],
]
OPENMMLAB = {"mmdet", "mmseg", "mmcv", "mmengine", "pycocotools"}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric", "jsonargparse"}


def _annotations_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _imports(node: ast.AST, package: str) -> set[str]:
    """Return the full names of what a file imports, at the top or in a function, except for annotations alone."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom):
            module = f"{package}." if child.level else ""
            found |= {f"{module}{child.module or ''}.{alias.name}" for alias in child.names}
        elif not _annotations_only(child):
            found |= _imports(child, package)
    return found


def _roots(file: Path) -> set[str]:
    package = file.relative_to(ROOT).parts[0]
    return {name.split(".")[0] for name in _imports(ast.parse(file.read_text(encoding="utf-8")), package)}


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_the_scan_sees_imports_in_every_place() -> None:
    source = """
import a.b as c, d
from e.f import g
from . import h
if TYPE_CHECKING:
    import i
def j():
    try:
        from k import l
    except ImportError:
        pass
"""
    assert _imports(ast.parse(source), "own") == {"a.b", "d", "e.f.g", "own..h", "k.l"}
    assert _files("core")
    assert MODALITIES


@pytest.mark.parametrize("file", WITHOUT_LIGHTNING, ids=lambda file: str(file.relative_to(ROOT)))
def test_nets_and_tools_import_no_lightning(file: Path) -> None:
    if file.name == "cli.py":
        names = _imports(ast.Module(_top_level(file), []), "core")
    else:
        names = _imports(ast.parse(file.read_text(encoding="utf-8")), "core")
    if file.name == "verbs.py":  # may import it in a function, as the command may
        names -= {"jsonargparse.ArgumentError", "jsonargparse.ArgumentParser"}
    assert not {name.split(".")[0] for name in names} & LIGHTNING
    assert not [name for name in names if name.startswith("core.training")]


def _top_level(file: Path) -> list[ast.stmt]:
    """The command may import lightning in its functions only, so that --help does not wait for it."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return [node for node in body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]


def test_importing_the_core_loads_no_lightning_and_no_modality() -> None:
    statement = ", ".join(["import core, core.cli, core.errors, core.export", *[f"core.{n}" for n in FOLDERS]])
    forbidden = [*LIGHTNING, *OPENMMLAB, *MODALITIES]
    check = f"import sys; {statement}; print(*[name for name in {forbidden} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", ["core", *MODALITIES])
def test_a_modality_imports_the_core_and_no_other_modality(package: str) -> None:
    others = set(PACKAGES[1:]) - {package}
    wrong = {str(file.relative_to(ROOT)): _roots(file) & others for file in _files(package)}
    assert not {file: names for file, names in wrong.items() if names}
    if package != "core":
        assert any("core" in _roots(file) for file in _files(package))


@pytest.mark.parametrize("package", ["core", *MODALITIES])
def test_openmmlab_stays_in_its_folder(package: str) -> None:
    outside = [file for file in _files(package) if "openmmlab" not in file.parts]
    assert not [str(file) for file in outside if _roots(file) & OPENMMLAB]
