"""Every configuration of the repository parses and trains, on small data in the format that it reads."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from cli.small_configs import CONFIGS, config_name, content, small_words
from jsonargparse import ArgumentParser
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import Strategy
from torch import nn
from training.small_runs import add_callbacks

from core.backbones.replknet import ReparamLargeKernelConv, RepLKBlock
from core.backbones.unireplknet import DilatedReparamBlock, UniRepLKNetBlock
from core.cli import main

BY_NAME = [c for c in CONFIGS if c.parent.name != "engine" and not c.stem.endswith(("det", "seg"))]
"""Configurations whose backbone timm builds; OpenMMLab's have configs of their own."""
ABLATIONS = [config for config in CONFIGS if config.parent.name == "ablations"]
EXTRAS = {"none": [], "bottleneck": [1, 3, 1], "two_1x1": [1, 1], "two_dw3x3": [3, 3], "se": [1, 1]}
BRANCHES = {
    "dilated": [(5, 1), (7, 2), (3, 3), (3, 4), (3, 5)],
    "none": [],
    "same_kernel": [(5, 1), (7, 1), (3, 1), (3, 1), (3, 1)],
    "same_equivalent_kernel": [(5, 1), (13, 1), (7, 1), (9, 1), (11, 1)],
}


def _shapes(config: Path) -> Any:
    """The backbone that a configuration names, without data."""
    args = content(config)["model"]["init_args"]
    with torch.device("meta"):
        return timm.create_model(
            args["backbone"], num_classes=args.get("num_classes", 0), **args.get("backbone_args") or {}
        )


def test_there_are_configurations() -> None:
    names = {config_name(path) for path in CONFIGS}
    assert {"vision/configs/cls.yaml", "vision/configs/imagenet.yaml", "audio/configs/cls.yaml"} <= names
    assert {"timeseries/configs/forecast.yaml", "timeseries/configs/global.yaml"} <= names
    assert len([name for name in names if "recipes" in name]) >= 20
    assert len([name for name in names if "ablations" in name]) >= 36


@pytest.mark.parametrize("config", CONFIGS, ids=config_name)
def test_configuration_trains(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = add_callbacks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    main(["fit", *small_words(config, tmp_path), "--trainer.fast_dev_run", "2"])
    (trainer,) = trainers
    assert trainer.global_step == 2
    args = content(config)["model"]["init_args"].get("backbone_args")
    assert trainer.lightning_module.hparams.get("backbone_args") == args
    wanted = {c["class_path"].rsplit(".", 1)[-1] for c in content(config)["trainer"].get("callbacks") or []}
    assert wanted <= {type(callback).__name__ for callback in trainer.callbacks}


@pytest.mark.parametrize("config", BY_NAME, ids=config_name)
def test_backbone_of_a_configuration_exists_with_its_weights(config: Path) -> None:
    args = content(config)["model"]["init_args"]
    assert timm.is_model(args["backbone"])
    if args.get("pretrained"):
        published = timm.get_pretrained_cfg(args["backbone"])  # raises for a tag that does not exist
        assert published is not None
        assert published.has_weights


@pytest.mark.parametrize("config", BY_NAME, ids=config_name)
def test_arguments_fit_the_backbone_itself(config: Path) -> None:
    assert _shapes(config).num_classes == content(config)["model"]["init_args"].get("num_classes", 0)


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.parent.name == "engine"], ids=config_name)
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


@pytest.mark.parametrize("config", CONFIGS, ids=config_name)
def test_configuration_says_what_it_is(config: Path) -> None:
    assert config.read_text(encoding="utf-8").startswith("# ")


def _kernels(stage: nn.Module) -> list[int]:
    """Size of the depthwise kernel of each block, 0 without one."""
    sizes = []
    for block in stage.modules():
        if isinstance(block, RepLKBlock):
            sizes.append(block.large_kernel.lkb_origin.conv.kernel_size[0])
        elif isinstance(block, UniRepLKNetBlock):
            conv = block.dwconv.lk_origin if isinstance(block.dwconv, DilatedReparamBlock) else block.dwconv
            sizes.append(conv.kernel_size[0] if isinstance(conv, nn.Conv2d) else 0)
    return sizes


def _named(pattern: str) -> Any:
    """Ablations whose names match, with what the groups of the pattern say."""
    found = [(config, re.fullmatch(pattern, config.stem)) for config in ABLATIONS]
    cases = [pytest.param(config, match.groups(), id=config.stem) for config, match in found if match]
    assert cases, pattern
    return pytest.mark.parametrize(("config", "said"), cases)


@_named(r"(?:kernels|replknet)_(\d+)_(\d+)_(\d+)_(\d+)")
def test_kernels_of_each_stage(config: Path, said: tuple[str, ...]) -> None:
    sizes = [_kernels(stage) for stage in _shapes(config).stages]
    assert sizes == [[int(size)] * depth for size, depth in zip(said, (1, 1, 3, 1), strict=True)]


@_named(r"lark_(\d+)(?:_(smak|no_dw)_(\d+))?")
def test_blocks_of_the_third_stage(config: Path, said: tuple[str, str | None, str | None]) -> None:
    large, kind, small = said
    first, second, third, fourth = (_kernels(stage) for stage in _shapes(config).stages)
    assert Counter(third) == Counter({13: int(large), (3 if kind == "smak" else 0): int(small or 0)})
    assert (first, second, fourth, third[0]) == ([3], [13], [13], 13)


@_named(r"extra_(\w+)")
def test_structure_after_the_depthwise_convolution(config: Path, said: tuple[str]) -> None:
    blocks = [block for block in _shapes(config).modules() if isinstance(block, UniRepLKNetBlock)]
    assert len(blocks) == 6
    for block in blocks:
        kernels = [layer.kernel_size[0] for layer in block.se.modules() if isinstance(layer, nn.Conv2d)]
        assert kernels == EXTRAS[said[0]]
        assert (type(block.se).__name__ == "SqueezeExcite") == (said[0] == "se")


@_named(r"reparam_(\w+)")
def test_branches_beside_the_large_kernels(config: Path, said: tuple[str]) -> None:
    blocks = [block for block in _shapes(config).modules() if isinstance(block, DilatedReparamBlock)]
    assert len(blocks) == 5
    for block in blocks:
        convs = [layer for name, layer in block.named_children() if name.startswith("dil_conv")]
        assert [(conv.kernel_size[0], conv.dilation[0]) for conv in convs] == BRANCHES[said[0]]


@_named(r"mobilenetv2_(last_)?k(\d+)(?:_small(\d+))?(_no_shortcut)?")
def test_kernels_and_shortcuts_of_mobilenet(config: Path, said: tuple[str | None, ...]) -> None:
    last, size, small, bare = said
    model = _shapes(config)
    large = {name: m for name, m in model.named_modules() if isinstance(m, ReparamLargeKernelConv)}
    assert len(large) == (0 if size == "3" else 1 if last else 17)
    assert not last or list(large) == ["blocks.6.0.conv_dw"]
    branches = [3] if last else [int(small)] if small else []  # the paper's last stage has them
    for layer in large.values():
        assert [part.conv.kernel_size[0] for part in layer.children()] == [int(size or 0), *branches]
    assert sum(block.has_skip for stage in model.blocks for block in stage) == (0 if bare else 10)


def test_every_ablation_is_looked_into() -> None:
    families = ("kernels_", "replknet_", "lark_", "extra_", "reparam_", "mobilenetv2_")
    assert all(config.stem.startswith(families) for config in ABLATIONS)
