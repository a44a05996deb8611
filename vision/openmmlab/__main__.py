"""Run a script of MMDetection or MMSegmentation after LarKit: ``python -m vision.openmmlab TOOL.py ARGS...``.

Some of these scripts import mmcv's compiled operators before they read a config, so its ``custom_imports`` would come
too late.
"""

import runpy
import sys
from pathlib import Path

import vision.openmmlab  # noqa: F401

if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
    found = f"there is no script {sys.argv[1]}" if len(sys.argv) > 1 else "no script was given"
    raise SystemExit(
        f"python -m vision.openmmlab: error: {found}; expected: python -m vision.openmmlab TOOL.py ARGS..., with a "
        "script of MMDetection or MMSegmentation such as .../mmdet/.mim/tools/test.py"
    )

del sys.argv[0]
sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))  # as Python does for a script
runpy.run_path(sys.argv[0], run_name="__main__")
