"""What every benchmark says of where it ran, and how it times ways in turn."""

import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

__all__ = ["commit", "keep", "machine", "take_turns"]


def machine(device: str = "cpu") -> dict[str, Any]:
    """Hardware, versions and commit."""
    said = {
        "cpu": _cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }
    if device.startswith("cuda"):
        said |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        said |= {"cudnn": torch.backends.cudnn.version()}
    return said


def commit() -> str:
    """The commit of this working tree, and whether something in it differs."""
    git = ["git", "-C", str(Path(__file__).parent)]
    name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    return (name or "unknown") + (" with changes" if changed else "")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def take_turns(ways: dict[str, Callable[[], Any]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of every way in each round, after one call that is not timed; each round begins with another way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    names = list(ways)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            _wait(device)
            start = perf_counter()
            ways[name]()
            _wait(device)
            times[name].append(perf_counter() - start)
    return times


def keep(entries: list[dict[str, Any]], path: Path, names: tuple[str, ...]) -> None:
    """Write entries to a file in the place of those of the same hardware that agree in the fields ``names``."""
    names = (*names, "cpu", "gpu", "threads")
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    new = {tuple(entry.get(name) for name in names) for entry in entries}
    stored = [entry for entry in stored if tuple(entry.get(name) for name in names) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored + entries, indent=1) + "\n", encoding="utf-8")


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
