"""One backbone for several modalities against separate ones, and one modality as a start for another.

    python benchmarks/transfer.py                                  # a short look: three members, 40 steps, one seed
    python benchmarks/transfer.py --steps 600 --seeds 5 --members image sound cloud video weather
    python benchmarks/transfer.py --draw                           # table and picture again, from what is written

On the built-in sets, with the tasks and data of multimodal/configs/joint.yaml. Every run has the same number of steps
and the same number of samples of a member in each step:

- 'alone': each member on its own network;
- 'joint': all members on one backbone, in the ways of ``WAYS``;
- 'from i to j': member j, starting from the shared layers of member i's run alone.

The error of a member is one minus the accuracy, or the mean squared error of standardized series, on validation. What
is written to benchmarks/results/transfer.json is not run again, so that a stopped measurement goes on where it was.
"""

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Trainer, seed_everything
from machine import keep, machine

from core.figures import new_figure
from multimodal import JointDataModule, JointTask

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "transfer.json"
CONFIG = ROOT / "multimodal" / "configs" / "joint.yaml"
WAYS: dict[str, dict[str, Any]] = {
    "joint, norms per member": {"norms": "per_member"},
    "joint, norms shared": {"norms": "shared"},
    "joint, last two stages": {"norms": "per_member", "share": [2, 3]},
}
KEY = ("kind", "members", "seed", "steps", "samples", "backbone")


def run(names: list[str], seed: int, args: argparse.Namespace, **options: Any) -> tuple[JointTask, dict[str, float]]:
    """Train these members together; return the task and the error of each."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    if args.backbone != model["backbone"]:
        model |= {"backbone": args.backbone, "backbone_args": {}}
    model |= {"members": {name: model["members"][name] for name in names}, "warmup_epochs": 0, "layer_decay": 1.0}
    data |= {
        "members": {name: data["members"][name] for name in names},
        "batch_size": args.samples * len(names),
        "sampling": "equal",
        "epoch_steps": args.steps,
    }

    seed_everything(seed, verbose=False)
    module = JointDataModule(**data)
    module.prepare_data()
    task = JointTask(**(model | options), spec=module.spec())
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, logger=False, num_sanity_val_steps=0, accelerator="cpu", **quiet)
    trainer.fit(task, module)

    errors = {}
    for name, member in task.tasks().items():
        monitor, mode = member.chosen()
        value = trainer.callback_metrics[f"{name}/{monitor}"].item()
        errors[name] = value if mode == "min" else 1 - value
    return task, errors


def measurements(args: argparse.Namespace, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Run what is not known yet, one entry after the other."""
    done = {_key(entry) for entry in known}
    fixed = {"steps": args.steps, "samples": args.samples, "backbone": args.backbone}
    for seed in range(args.seeds):
        for way, options in WAYS.items():
            entry = {"kind": way, "members": " ".join(args.members), "seed": seed, **fixed}
            if _key(entry) not in done:
                task, errors = run(args.members, seed, args, **options)
                yield entry | {"errors": errors, "parameters": _count(task)}

        for source in args.members:
            entries = {}
            for target in args.members:
                kind = "alone" if target == source else f"from {source}"
                entries[target] = {"kind": kind, "members": target, "seed": seed, **fixed}
            if all(_key(entry) in done for entry in entries.values()):
                continue
            task, errors = run([source], seed, args)
            with tempfile.TemporaryDirectory() as folder:
                weights = Path(folder) / "source.pt"
                torch.save(task.state_dict(), weights)
                for target, entry in sorted(entries.items(), key=lambda item: item[0] != source):
                    if _key(entry) in done:
                        continue
                    if target != source:
                        task, errors = run([target], seed, args, weights=str(weights))
                    yield entry | {"errors": errors, "parameters": _count(task)}


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[name] for name in KEY)


def _count(task: JointTask) -> int:
    return sum(parameter.numel() for parameter in task.parameters())


def matrix(entries: list[dict[str, Any]], members: list[str]) -> dict[str, dict[str, list[float]]]:
    """The errors over the seeds, by kind of run and member; 'alone' is the first row."""
    kinds = ["alone", *WAYS, *(f"from {name}" for name in members)]
    found: dict[str, dict[str, list[float]]] = {kind: {} for kind in kinds}
    for entry in entries:
        for name, error in entry["errors"].items():
            if entry["kind"] in found and name in members:
                found[entry["kind"]].setdefault(name, []).append(error)
    return {kind: row for kind, row in found.items() if row}


def table(rows: dict[str, dict[str, list[float]]], members: list[str]) -> str:
    """Mean and standard deviation over the seeds."""
    lines = ["| error | " + " | ".join(members) + " |", "|" + "---|" * (len(members) + 1)]
    for kind, row in rows.items():
        lines.append(f"| {kind} | " + " | ".join(_cell(row.get(name, [])) for name in members) + " |")
    return "\n".join(lines)


def _cell(errors: list[float]) -> str:
    if not errors:
        return ""
    spread = f" ± {statistics.stdev(errors):.3f}" if len(errors) > 1 else ""
    return f"{statistics.mean(errors):.3f}{spread}"


def figure(rows: dict[str, dict[str, list[float]]], members: list[str]) -> Any:
    """How much of the error alone is left, minus one: blue where it helps, red where it hurts."""
    kinds = [kind for kind in rows if kind != "alone"]
    drawing = new_figure(2 + 1.2 * len(members), 1.2 + 0.6 * len(kinds))
    axes = drawing.subplots()
    alone = {name: statistics.mean(rows["alone"][name]) for name in members if name in rows.get("alone", {})}
    change = torch.full((len(kinds), len(members)), float("nan"))
    for i, kind in enumerate(kinds):
        for j, name in enumerate(members):
            if name in rows[kind] and alone.get(name):
                change[i, j] = statistics.mean(rows[kind][name]) / alone[name] - 1
                axes.text(j, i, f"{100 * change[i, j]:+.0f} %", ha="center", va="center")
    axes.imshow(change.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(members)), members)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_title("error relative to training alone")
    return drawing


def main() -> None:
    """Measure, print and write."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--members", nargs="+", default=["image", "sound", "cloud"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--samples", type=int, default=16, help="samples of each member in a step")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--backbone", default="unireplknet_a")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--draw", action="store_true", help="run nothing")
    args = parser.parse_args()

    known = json.loads(args.results.read_text(encoding="utf-8")) if args.results.exists() else []
    if not args.draw:
        for entry in measurements(args, known):
            print(f"{entry['kind']}, {entry['members']}, seed {entry['seed']}: {entry['errors']}", flush=True)
            keep([entry | machine()], args.results, KEY)
        known = json.loads(args.results.read_text(encoding="utf-8"))

    same = {"steps": args.steps, "samples": args.samples, "backbone": args.backbone}
    chosen = [entry for entry in known if all(entry[name] == value for name, value in same.items())]
    rows = matrix(chosen, args.members)
    print(table(rows, args.members))
    figure(rows, args.members).savefig(args.results.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
