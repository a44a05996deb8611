"""The configurations of the repository, cut down to nets and data that train in seconds."""

from pathlib import Path
from typing import Any

import yaml
from cli.small_sets import small_data

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted(REPOSITORY.glob("*/configs/**/*.yaml"))
BASES = {
    "recipes": ("imagenet.yaml", "kinetics400.yaml"),
    "ablations": ("ablation.yaml",),
}
"""Folder of configurations that go on top of another one, and that one, the first that a modality has."""
TINY = {"unireplknet": "test_unireplknet", "replknet": "test_replknet"}
"""Family of a backbone, and the net that takes its place."""
HERE = {"accelerator": "cpu", "devices": "1", "num_nodes": "1", "strategy": "auto", "plugins": "null"}
SMALL = {
    **{f"trainer.{key}": value for key, value in HERE.items()},
    **{"trainer.enable_progress_bar": "false", "trainer.enable_model_summary": "false"},
    "trainer.accumulate_grad_batches": "1",
    **{"data.batch_size": "4", "data.num_workers": "0"},
    **{"model.pretrained": "false", "model.weights": "null"},
}


def config_name(path: Path) -> str:
    """Path of a configuration in the repository."""
    return str(path.relative_to(REPOSITORY))


def stack(config: Path) -> list[Path]:
    """The files to give with -c for one configuration."""
    if config.parent.name == "engine":
        return [REPOSITORY / "vision/configs/cls.yaml", config]
    bases = [config.parent.parent / name for name in BASES.get(config.parent.name, ())]
    return [*[base for base in bases if base.is_file()][:1], config]


def content(config: Path) -> dict[str, Any]:
    """The sections of a configuration and of what lies under it, the upper one first."""
    sections: dict[str, Any] = {}
    for file in stack(config):
        for key, value in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            lower = sections.get(key, {}).get("init_args", {})
            upper = value.get("init_args", {})
            init = {**lower, **upper}
            if "backbone" not in upper and "backbone_args" in lower:
                init["backbone_args"] = {**lower["backbone_args"], **upper.get("backbone_args", {})}
            sections[key] = {**sections.get(key, {}), **value, "init_args": init}
    return sections


def backbone(config: Path) -> str:
    """A small net of the same family, which takes the same arguments; others are small."""
    name: str = content(config)["model"]["init_args"]["backbone"]
    return TINY.get(name.partition("_")[0], name)


def small_words(config: Path, folder: Path) -> list[str]:
    """The command line after the verb for a small run; its data are written into the folder."""
    own = {"model.backbone": backbone(config)} if "backbone" in content(config)["model"]["init_args"] else {}
    options = SMALL | own | small_data(content(config)["data"], folder)
    words = [word for file in stack(config) for word in ("-c", str(file))]
    return words + [word for key, value in options.items() for word in (f"--{key}", value)]
