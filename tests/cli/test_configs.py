"""Every configuration of the repository parses and trains, on small data in the format that it reads."""

from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import Strategy
from training.small_runs import add_callbacks, write_photos

from core.cli import main

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted(REPOSITORY.glob("*/configs/**/*.yaml"))
BASES = {"recipes": "imagenet.yaml", "engine": "cls.yaml"}
"""Folder of configurations that go on top of another one, and that one."""
HERE = {"accelerator": "cpu", "devices": "1", "num_nodes": "1", "strategy": "auto", "plugins": "null"}
SMALL = {
    **{f"trainer.{key}": value for key, value in HERE.items()},
    **{"trainer.enable_progress_bar": "false", "trainer.enable_model_summary": "false"},
    **{"trainer.accumulate_grad_batches": "1", "trainer.fast_dev_run": "2"},
    **{"data.batch_size": "4", "data.num_workers": "0", "data.size": "32"},
    **{"model.backbone": "test_unireplknet", "model.pretrained": "false", "model.weights": "null"},
}


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def _stack(config: Path) -> list[Path]:
    """The files to give with -c for one configuration."""
    base = BASES.get(config.parent.name)
    return [config] if base is None else [config.parent.parent / base, config]


def _content(config: Path) -> dict[str, Any]:
    """The sections of a configuration and of what lies under it, the upper one first."""
    sections: dict[str, Any] = {}
    for file in _stack(config):
        for key, value in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            init = {**sections.get(key, {}).get("init_args", {}), **value.get("init_args", {})}
            sections[key] = {**sections.get(key, {}), **value, "init_args": init}
    return sections


def _data(config: Path, folder: Path) -> dict[str, str]:
    """Options that put small data in the place of a configuration's own."""
    kind = _content(config)["data"]["class_path"].rsplit(".", 1)[-1]
    if kind == "Digits":
        return {}
    if kind == "ImageFolder":
        return {"data.root": str(write_photos(folder / "photos", train=4, val=2)), "model.num_classes": "3"}
    pytest.fail(f"{config} reads {kind}: write small data for it here")


def test_there_are_configurations() -> None:
    names = {_name(path) for path in CONFIGS}
    assert {"vision/configs/cls.yaml", "vision/configs/imagenet.yaml"} <= names
    assert len([name for name in names if "recipes" in name]) >= 10


@pytest.mark.parametrize("config", CONFIGS, ids=_name)
def test_configuration_trains(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = add_callbacks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    options = SMALL | _data(config, tmp_path)
    words = [word for file in _stack(config) for word in ("-c", str(file))]
    words += [word for key, value in options.items() for word in (f"--{key}", value)]
    main(["fit", *words])
    (trainer,) = trainers
    assert trainer.global_step == 2
    wanted = {c["class_path"].rsplit(".", 1)[-1] for c in _content(config)["trainer"].get("callbacks") or []}
    assert wanted <= {type(callback).__name__ for callback in trainer.callbacks}


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.parent.name != "engine"], ids=_name)
def test_backbone_of_a_configuration_exists_with_its_weights(config: Path) -> None:
    args = _content(config)["model"]["init_args"]
    assert timm.is_model(args["backbone"])
    if args.get("pretrained"):
        assert args["backbone"] in timm.list_models(args["backbone"].split(".")[0] + ".*", pretrained=True)


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.parent.name == "engine"], ids=_name)
def test_engine_can_be_built(config: Path) -> None:
    trainer = yaml.safe_load(config.read_text(encoding="utf-8"))["trainer"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--strategy", type=str | Strategy)
    parser.add_argument("--plugins", type=list[ClusterEnvironment])
    given = {"strategy": trainer.get("strategy", "auto"), "plugins": trainer.get("plugins", [])}
    named = [entry["class_path"] for entry in [given["strategy"], *given["plugins"]] if isinstance(entry, dict)]
    built = parser.instantiate(parser.parse_object(given))
    objects = [thing for thing in [built.strategy, *built.plugins] if not isinstance(thing, str)]
    assert [name.rsplit(".", 1)[-1] for name in named] == [type(thing).__name__ for thing in objects]


@pytest.mark.parametrize("config", CONFIGS, ids=_name)
def test_configuration_says_what_it_is(config: Path) -> None:
    assert config.read_text(encoding="utf-8").startswith("# ")
