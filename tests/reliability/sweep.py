"""Try every fault on every configuration and verb, and print what happened as the tables of tests/README.md.

    python tests/reliability/sweep.py                                        the configurations without recipes on top
    python tests/reliability/sweep.py --config vision/configs/cls.yaml --fault 'disk full'
    python tests/reliability/sweep.py --results results.json --readme        (adds to earlier results; a new table)

Moments are random and follow from --seed. The superuser gets real small disks that are full or read-only; others get
limits on files and permissions.
"""

import argparse
import functools
import importlib
import json
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path

for folder in Path(__file__).resolve().parents[1:3]:
    sys.path.insert(0, str(folder))  # in the order that pytest has

from cli.small_configs import CONFIGS, config_name, small_words  # noqa: E402
from reliability.commands import run  # noqa: E402
from reliability.faults import FAULTS, fit  # noqa: E402
from reliability.verbs import VERBS, damaged_verb, prepare, stopped_verb  # noqa: E402

import vision.demo  # noqa: E402
from vision.demo import handwritten_digits  # noqa: E402

IMPORTED_FIRST = (
    "core.training.lightning_cli",
    "core.analysis.verbs",
    "core.training.hub",
    "matplotlib.backends.backend_agg",
)
OPTIONAL = ("vision.openmmlab.detector", "vision.openmmlab.segmenter", "tensorboard", "onnxruntime", "sklearn.datasets")
FIT, VERB = "fit with", "verb"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- written by reliability/sweep.py -->", "<!-- end -->"
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


def sweep_verb(verb: str, place: Path, tries: int) -> Rows:
    """A verb on a run of a small configuration: stopped at random moments, and given a damaged checkpoint."""
    folder = place / "data"
    folder.mkdir(parents=True)
    words, clean = small_words(_config_of(verb), folder), _fresh(place, folder)
    prepare(words, clean)
    stopped = functools.partial(stopped_verb, verb, words, clean, tries)
    damaged = functools.partial(damaged_verb, verb, words, clean)
    return {
        verb: {
            "SIGINT, SIGTERM, kill -9": tried(f"{verb}, stopped", stopped),
            "damaged checkpoint": tried(f"{verb}, damaged checkpoint", damaged),
        }
    }


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


def by_folder(rows: Rows) -> Rows:
    """One row for all recipes, ablations or engines of a folder, with how often each thing happened."""
    folders: dict[str, list[dict[str, str]]] = {}
    for name, cells in sorted(rows.items()):
        folder = name.rpartition("/")[0]
        folders.setdefault(name if folder.endswith("configs") else f"{folder}/", []).append(cells)
    found: Rows = {}
    for name, several in folders.items():
        counts = {fault: Counter(cells.get(fault, "not tried") for cells in several) for fault in FAULTS}
        cells = {
            fault: "; ".join(f"{n} x {text}" for text, n in count.most_common()) for fault, count in counts.items()
        }
        found |= {f"{name} ({len(several)} files)": cells} if name.endswith("/") else {name: several[0]}
    return found


def main() -> int:
    """Sweep, print the tables, and end with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", nargs="*", help="configurations; by default those without recipes on top")
    parser.add_argument("--all", action="store_true", help="every configuration of the repository")
    parser.add_argument("--fault", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--verb", nargs="*", default=list(VERBS), choices=list(VERBS))
    parser.add_argument("--tries", type=int, default=2, help="moments for each signal and verb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="JSON file of results, which is added to")
    parser.add_argument("--readme", action="store_true", help="put the tables of all results into tests/README.md")
    given = parser.parse_args()
    random.seed(given.seed)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell, and their runs, ignore it
    for module in entry_points(group="larkit.modalities"):
        module.load()
    for name in IMPORTED_FIRST:
        importlib.import_module(name)
    for name in OPTIONAL:
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"without {name}")
    vision.demo.handwritten_digits = functools.cache(handwritten_digits)
    vision.demo.handwritten_digits()  # they lie in a text file that takes a second, which every run would read
    chosen = [c for c in CONFIGS if given.all or c.parent.name == "configs"]
    if given.config:
        chosen = [c for name in given.config for c in CONFIGS if config_name(c) == name]
    known: dict[str, Rows] = {FIT: {}, VERB: {}}
    if given.results and given.results.is_file():
        known = json.loads(given.results.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        for i, config in enumerate(chosen if given.fault else []):
            found = sweep_config(config, given.fault, Path(place) / str(i))
            known[FIT][config_name(config)] = known[FIT].get(config_name(config), {}) | found
            shutil.rmtree(Path(place) / str(i), ignore_errors=True)
            _keep(known, given.results, readme=given.readme)
        for verb in given.verb:
            known[VERB] |= sweep_verb(verb, Path(place) / verb, given.tries)
            _keep(known, given.results, readme=given.readme)
    text = _tables(known)
    print(text)
    return int("WRONG" in text)


def _keep(known: dict[str, Rows], results: Path | None, *, readme: bool) -> None:
    """Write what is known so far: a sweep takes long, and this machine may fail too."""
    if results:
        results.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    if readme:
        before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n\n{_tables(known)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _tables(known: dict[str, Rows]) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("larkit", "torch", "lightning", "mmengine"))
    parts = [table(by_folder(rows) if head == FIT else rows, head) for head, rows in known.items() if rows]
    return "\n\n".join([*parts, f"Python {platform.python_version()}, {libraries}, {platform.system()}."]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
