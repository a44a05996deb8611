"""Try every fault on every configuration and verb, and print what happened as the tables of tests/README.md.

    python tests/reliability/sweep.py                                        the configurations without recipes on top
    python tests/reliability/sweep.py --config vision/configs/cls.yaml --fault 'disk full'
    python tests/reliability/sweep.py --all --fault 'kill -9' --tables tables.md

Moments are random and follow from --seed. The superuser gets real small disks that are full or read-only; others get
limits on files and permissions.
"""

import argparse
import functools
import importlib
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path

for folder in Path(__file__).resolve().parents[1:3]:
    sys.path.insert(0, str(folder))  # in the order that pytest has

from cli.small_configs import CONFIGS, config_name, small_words  # noqa: E402
from reliability.commands import run  # noqa: E402
from reliability.faults import FAULTS, fit  # noqa: E402
from reliability.verbs import VERBS, damaged_verb, prepare, stopped_verb  # noqa: E402

import vision.data  # noqa: E402
from vision.digits import handwritten_digits  # noqa: E402

IMPORTED_FIRST = ("core.training.cli", "core.analysis.verbs", "core.training.push", "matplotlib.backends.backend_agg")
OPTIONAL = ("vision.openmmlab.detector", "vision.openmmlab.segmenter", "tensorboard", "onnxruntime", "sklearn.datasets")
Rows = dict[str, dict[str, str]]


def tried(name: str, what: Callable[[], str]) -> str:
    """What happened, or WRONG and why."""
    begun = time.monotonic()
    try:
        result = what()
    except Exception as error:  # also of the sweep itself: the other faults are tried all the same
        result = f"WRONG: {error}".replace("\n", " ")
    print(f"{name}: {result} ({time.monotonic() - begun:.0f} s)", flush=True)
    return result


def sweep_config(config: Path, faults: list[str], place: Path) -> dict[str, str]:
    """All faults of ``fit`` on one configuration, each in a folder of its own."""
    folder = place / "data"
    folder.mkdir(parents=True)
    words = small_words(config, folder)
    status, command, seconds = run(fit(words), _fresh(place, folder))
    if status:
        return dict.fromkeys(faults, f"WRONG: the undisturbed run: {command.last_line()}")
    results = {}
    for name in faults:
        clean = _fresh(place, folder)
        results[name] = tried(f"{config_name(config)}, {name}", functools.partial(FAULTS[name], words, clean, seconds))
    return results


def sweep_verbs(verbs: list[str], place: Path, tries: int) -> Rows:
    """All verbs on a run of a small configuration: stopped at random moments, and given a damaged checkpoint."""
    rows: Rows = {}
    for config in dict.fromkeys(_config_of(verb) for verb in verbs):
        folder = place / config.parent.parent.name / "data"
        folder.mkdir(parents=True)
        words, clean = small_words(config, folder), _fresh(folder.parent, folder)
        prepare(words, clean)
        for verb in (verb for verb in verbs if _config_of(verb) == config):
            stopped = functools.partial(stopped_verb, verb, words, clean, tries)
            damaged = functools.partial(damaged_verb, verb, words, clean)
            rows[verb] = {
                "stopped by SIGINT, SIGTERM, kill -9": tried(f"{verb}, stopped", stopped),
                "damaged checkpoint": tried(f"{verb}, damaged checkpoint", damaged),
            }
    return rows


def _config_of(verb: str) -> Path:
    """Sounds for stats, which measures what other data do not need; else digits."""
    name = "audio/configs/folder.yaml" if verb == "stats" else "vision/configs/cls.yaml"
    return next(config for config in CONFIGS if config_name(config) == name)


def _fresh(place: Path, data: Path) -> Path:
    """An empty folder to run in, with what a data module looks for in the current one."""
    folder = Path(tempfile.mkdtemp(prefix="run", dir=place))
    if (data / "data").is_dir():
        shutil.copytree(data / "data", folder / "data")
    return folder


def table(rows: Rows, head: str) -> str:
    """A markdown table."""
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [f"| {head} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells.get(c, '') for c in columns)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def main() -> int:
    """Sweep, print the tables, and end with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", nargs="*", help="configurations; by default those without recipes on top")
    parser.add_argument("--all", action="store_true", help="every configuration of the repository")
    parser.add_argument("--fault", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--verb", nargs="*", default=list(VERBS), choices=list(VERBS))
    parser.add_argument("--tries", type=int, default=2, help="moments for each signal and verb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", type=Path, help="file for the tables")
    given = parser.parse_args()
    random.seed(given.seed)
    for module in entry_points(group="larkit.modalities"):
        module.load()
    for name in IMPORTED_FIRST:
        importlib.import_module(name)
    for name in OPTIONAL:
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"without {name}")
    vision.data.handwritten_digits = functools.cache(handwritten_digits)
    vision.data.handwritten_digits()  # they lie in a text file that takes a second, which every run would read
    chosen = [c for c in CONFIGS if given.all or c.parent.name == "configs"]
    if given.config:
        chosen = [c for c in CONFIGS if config_name(c) in given.config]
    rows: Rows = {}
    with tempfile.TemporaryDirectory() as place:
        verbs = sweep_verbs(given.verb, Path(place) / "verbs", given.tries) if given.verb else {}
        for i, config in enumerate(chosen if given.fault else []):
            rows[config_name(config)] = sweep_config(config, given.fault, Path(place) / str(i))
            shutil.rmtree(Path(place) / str(i), ignore_errors=True)
            _write(given.tables, rows, verbs)
    text = _write(given.tables, rows, verbs)
    print(text)
    return int("WRONG" in text)


def _write(file: Path | None, rows: Rows, verbs: Rows) -> str:
    """The tables so far."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("larkit", "torch", "lightning", "mmengine"))
    parts = [table(found, head) for found, head in ((rows, "fit with"), (verbs, "verb")) if found]
    text = "\n\n".join([*parts, f"Python {platform.python_version()}, {libraries}, {platform.system()}."]) + "\n"
    if file:
        file.write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    sys.exit(main())
