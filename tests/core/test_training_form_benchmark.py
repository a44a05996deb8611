"""The benchmark of the block's training form runs, at a tiny size, and writes what it prints."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training_form.py"


def test_training_steps(tmp_path: Path) -> None:
    output = tmp_path / "results" / "training_form.json"
    options = ["--sizes", "4", "9", "7", "6", "5", "5", "--batch", "3", "--rounds", "2", "--output", str(output)]
    for _ in range(2):  # the second run takes the place of the first
        command = [sys.executable, str(SCRIPT), *options]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout
    entries = json.loads(output.read_text())
    assert [(entry["channels"], entry["side"], entry["kernel"]) for entry in entries] == [(4, 9, 7), (6, 5, 5)]
    for entry in entries:
        ways = entry["ways"]
        names = ["twin", "twin, channels_last", "LarKit, branches", "LarKit, merged", "one convolution"]
        assert list(ways) == names
        assert ways["twin"]["times_the_twin"] == 1
        one_map = 4 * 3 * entry["channels"] * entry["side"] ** 2 / 2**20
        assert ways["LarKit, branches"]["mib_kept"] > 4 * one_map
        assert one_map <= ways["LarKit, merged"]["mib_kept"] < 2 * one_map
        for name in names:
            assert f"| {name} | {ways[name]['ms']['median']:.2f} (" in printed
            assert name == "one convolution" or ways[name]["error"] < 1e-5
