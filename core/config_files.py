"""Find installed configuration files by name from any folder."""

import difflib
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from core.errors import InputError, MissingError

__all__ = ["find_config", "installed_configs", "list_configs"]


@cache
def installed_configs() -> dict[str, Path]:
    """Return the configuration files of all installed modalities and of ``core``, by name.

    Names are paths in the repository, such as 'vision/configs/recipes/in1k_t.yaml'.
    """
    packages = sorted(entry.value for entry in entry_points(group="larkit.modalities"))
    found = {}
    for package in [*packages, "core"]:
        for folder in _folders(package):
            for file in sorted((folder / "configs").glob("**/*.yaml")):
                found[f"{package}/{file.relative_to(folder).as_posix()}"] = file
    return found


def find_config(given: str) -> tuple[Path, bool]:
    """Find the configuration that the user means.

    Args:
        given: a path or, if there is no such file, the name of an installed configuration. The end of a name, such as
            'configs/folder.yaml', is enough if no other name ends in it.

    Returns:
        The path of the file, and whether it is an installed file at another path than ``given``.

    Raises:
        MissingError: if there is none, or several; the message lists similar names.
        InputError: if the file at this path is not YAML, is empty, or expands without end.
    """
    path = Path(given)
    if path.is_file():
        _check_yaml(path)
        return path, False

    installed = installed_configs()
    name = path.as_posix()
    if name in installed:
        return installed[name], True

    endings = [known for known in installed if known.endswith(f"/{name}")]
    if len(endings) == 1:
        return installed[endings[0]], True

    near = (endings or _nearest(path))[:4]
    advice = f"did you mean {' or '.join(near)}? " if near else ""
    raise MissingError(f"there is no configuration {given}; {advice}lightning configs lists those that are installed")


def list_configs() -> str:
    """Return a list of the installed configurations with their first comment lines, grouped by folder."""
    folders: dict[str, list[str]] = {}
    for name, file in installed_configs().items():
        folder, _, base = name.rpartition("/")
        line = textwrap.shorten(_first_comment(file), width=80, placeholder=" ...")
        folders.setdefault(folder, []).append(f"  {base:<31}  {line}")
    return "\n\n".join("\n".join([f"{folder}/", *lines]) for folder, lines in folders.items())


def _folders(package: str) -> Iterator[Path]:
    """Yield the folders of a package without importing it."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(folder)


def _nearest(path: Path) -> list[str]:
    """Return names that are similar to a missing file, of files in its folder and of installed ones."""
    beside = [file.as_posix() for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    names = list(dict.fromkeys([*beside, *installed_configs()]))
    by_path = difflib.get_close_matches(path.as_posix(), names, n=4, cutoff=0.75)

    bases = {name.rpartition("/")[2] for name in names}
    near = difflib.get_close_matches(path.name, bases, n=2, cutoff=0.75)
    by_base = [name for base in near for name in names if name.rpartition("/")[2] == base]
    return list(dict.fromkeys([*by_path, *by_base]))


def _first_comment(file: Path) -> str:
    """Return the first line of the comment at the top of a file, or an empty string."""
    with file.open(encoding="utf-8") as lines:
        first = next(lines, "").strip()
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _check_yaml(path: Path) -> None:
    """Raise an error for a file without settings, before the parser of the command reads it."""
    from core.io.untrusted import parse_yaml  # torch takes a second to import; lightning configs need not wait for it

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not YAML: {error}") from error

    content = parse_yaml(text, path)
    _check_unique(text, path)
    if content is None:
        raise InputError(f"{path} is empty; expected settings by their names, such as model: and data:")
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds {type(content).__name__}; expected settings by their names, such as model: and data:"
        )


def _check_unique(text: str, path: Path) -> None:
    """Raise an error if a setting stands twice, of which YAML's parser would silently take the second."""
    import yaml

    nodes = [yaml.compose(text, Loader=yaml.SafeLoader)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            nodes += [value for _, value in node.value]
            lines: dict[object, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if key.value in lines and key.tag != "tag:yaml.org,2002:merge":
                    first = lines[key.value]
                    raise InputError(
                        f"{path} names {key.value!r} twice, in lines {first} and {line}; remove one of them"
                    )
                if isinstance(key, yaml.ScalarNode):
                    lines[key.value] = line
