"""The verbs besides fit: stopped at a random moment, they leave whole files or none."""

import shutil
import signal
from pathlib import Path

import numpy as np
from PIL import Image
from reliability.commands import interrupted, run
from reliability.faults import DAMAGES, STATUS, damage, fit, refused, well
from reliability.whole import damaged_files

CHECKPOINT_VERBS = ("validate", "test", "predict", "export")
SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "kill -9": signal.SIGKILL}


def verb_words(verb: str, words: list[str], folder: Path) -> list[str]:
    """The command line of a verb, for a run that lies in the folder."""
    if verb == "stats":
        return ["stats", *words]
    (last,) = folder.glob("lightning_logs/*/version_0/checkpoints/last.ckpt")
    pictures = folder / "pictures"
    if verb in CHECKPOINT_VERBS:
        more = ["--data.predict_path", str(pictures)] if verb == "predict" else []
        trainer = [] if verb in ("export", "stats") else ["--trainer.limit_test_batches", "2"]
        return [verb, *words, *more, *trainer, "--ckpt_path", str(last)]
    return {
        "push": ["push", str(last), "--folder", str(folder / "shared")],
        "erf": ["erf", "test_unireplknet", "--pretrained", "false", "--images", str(pictures), "--size", "64"],
        "shape-bias": ["shape-bias", "test_unireplknet", "--pretrained", "false", "--images", str(pictures)],
        "cost": ["cost", "test_unireplknet", "--size", "32", "--rounds", "1"],
    }[verb]


VERBS = (*CHECKPOINT_VERBS, "stats", "push", "erf", "shape-bias", "cost")


def prepare(words: list[str], folder: Path) -> None:
    """A run of one epoch in the folder, and pictures for the verbs that want some."""
    status, command, _ = run(fit(words, epochs=1), folder)
    well(status, command)
    (folder / "pictures").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (48, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"cat{i + 1}-knife{i + 2}.png")


def stopped_verb(verb: str, words: list[str], folder: Path, tries: int) -> str:
    """Signals at random moments; what the verb then left is whole, and it works when it is left alone."""
    given = verb_words(verb, words, folder)
    status, command, seconds = run(given, folder)
    well(status, command)
    _clear(folder)
    seen: dict[str, int] = {}
    for name, number in SIGNALS.items():
        for _attempt in range(tries):
            status, command = interrupted(given, folder, number, seconds)
            for _ in range(6):
                if status:
                    break  # else it was faster than the undisturbed run
                _clear(folder)
                seconds *= 0.7
                status, command = interrupted(given, folder, number, seconds)
            assert status == STATUS[number], f"{name}: status {status}: {command.last_line()}"
            if number != signal.SIGKILL:
                assert "Traceback" not in command.printed(), f"{name}: {command.last_line()}"
            wrong = damaged_files(folder)
            assert not wrong, f"{name}: half-written: {wrong}"
            seen[str(status)] = seen.get(str(status), 0) + 1
            _clear(folder)
    status, command, _ = run(given, folder)
    well(status, command)
    _clear(folder)
    return ", ".join(f"{count} x {status}" for status, count in sorted(seen.items()))


def damaged_verb(verb: str, words: list[str], folder: Path) -> str:
    """Each kind of damaged checkpoint, given to a verb that reads one."""
    if verb == "stats":
        return "reads none"
    (last,) = folder.glob("lightning_logs/*/version_0/checkpoints/last.ckpt")
    content, marker = last.read_bytes(), folder / "ran"
    command_line = verb_words(verb, words, folder)
    if verb in ("erf", "shape-bias", "cost"):
        command_line[1] = str(last)
    for kind in DAMAGES:
        damage(last, kind, marker)
        status, command, _ = run(command_line, folder)
        last.write_bytes(content)
        refused(status, command, "last.ckpt")
        assert not marker.exists(), f"{kind}: the file ran code"
    return f"1, refused: {', '.join(DAMAGES)}"


def _clear(folder: Path) -> None:
    """Take away what the verbs wrote, so that the next one starts afresh."""
    for path in folder.iterdir():
        if path.name in ("shared", "erf", "shape_bias", "cost", "exports") or path.name.endswith(".part"):
            shutil.rmtree(path)
    for path in folder.glob("lightning_logs/*/version_*"):
        if path.name != "version_0":
            shutil.rmtree(path)
