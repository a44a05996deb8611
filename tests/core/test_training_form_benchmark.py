"""The benchmark of the block's training form runs, at a tiny size, and writes what it prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training_form.py"


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_training_form(mode: str, tmp_path: Path) -> None:
    output = tmp_path / "results" / "training_form.json"
    options = ["--sizes", "4", "9", "7", "6", "5", "5", "--batch", "3", "--rounds", "2", "--mode", mode]
    command = [sys.executable, str(SCRIPT), *options, "--output", str(output)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout
    entries = json.loads(output.read_text())
    assert [(entry["channels"], entry["side"], entry["kernel"]) for entry in entries] == [(4, 9, 7), (6, 5, 5)]
    for entry in entries:
        ways = entry["ways"]
        names = ["twin", "twin, channels_last", "LarKit, branches", "LarKit, merged", "one convolution"]
        assert list(ways) == names
        assert ways["twin"]["times_the_twin"] == 1
        one_map = 4 * 3 * entry["channels"] * entry["side"] ** 2 / 2**20
        kept = [ways[f"LarKit, {form}"]["mib_kept"] for form in ("branches", "merged")]
        if mode == "train":
            assert kept[0] > 4 * one_map
            assert one_map <= kept[1] < 2 * one_map
        else:
            assert kept == [None, None]
        for name in names:
            assert f"| {name} | {ways[name]['ms']['median']:.2f} (" in printed
            assert name == "one convolution" or ways[name]["error"] < 1e-5
