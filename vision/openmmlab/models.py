"""Build the detectors and segmentors of MMDetection and MMSegmentation from their configs."""

import contextlib
import copy
import difflib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings
from torch import nn

from core.errors import InputError, MissingError
from core.torch_files import restricted_pickles

__all__ = ["build_dataset", "build_model", "innermost", "quiet", "read_config"]

_CONFIGS = Path(__file__).parent / "configs"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what OpenMMLab and pycocotools print and log while they build; warnings about the config are shown."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*(``build_loss`` would be deprecated|Default ``avg_non_ignore``)")
            yield
    finally:
        logger.setLevel(level)


def read_config(config: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """A config file with some of its values replaced.

    Args:
        config: path of a ``.py`` config, or the name of one in ``vision/openmmlab/configs``.
        options: values by dotted name, as MMEngine's ``--cfg-options``: ``{'model.backbone.with_cp': True}``.

    Raises:
        MissingError: if there is no such file.
        InputError: if it cannot be read, or is neither for MMDetection nor for MMSegmentation.
    """
    path = next((p for p in (Path(config), _CONFIGS / config) if p.is_file()), None)
    if path is None:
        known = [file.name for file in sorted(_CONFIGS.glob("*.py"))]
        near = difflib.get_close_matches(str(config), known, n=3, cutoff=0.3) or known[:3]
        raise MissingError(f"there is no config {config}; give a file, or one of ours such as {', '.join(near)}")
    try:
        read = Config.fromfile(path)
        read.merge_from_dict(dict(options or {}))
    except (OSError, SyntaxError, KeyError, TypeError, ImportError, NameError, AttributeError) as error:
        raise InputError(f"{path} cannot be read with options {dict(options or {})}: {error}") from error
    if read.get("default_scope") not in ("mmdet", "mmseg"):
        raise InputError(f"{path} has default_scope={read.get('default_scope')!r}; expected 'mmdet' or 'mmseg'")
    try:
        with quiet():
            import_modules_from_strings([f"{read.default_scope}.models", f"{read.default_scope}.datasets"])
    except ModuleNotFoundError as error:
        raise MissingError(
            f"{path} needs {error.name}; type in LarKit's folder: pip install -e '.[openmmlab]'"
        ) from error
    return read


def build_model(config: Config, *, pretrained: bool = False) -> nn.Module:
    """The model of a config, with initial weights.

    Args:
        config: what :func:`read_config` gives.
        pretrained: load what ``init_cfg`` of the backbone names; otherwise it is left out.

    Raises:
        InputError: if the parts do not go together.
    """
    settings = config.model.copy()
    if not pretrained:
        settings.backbone = {k: v for k, v in settings.backbone.items() if k != "init_cfg"}
    with DefaultScope.overwrite_default_scope(config.default_scope), quiet(), restricted_pickles():
        try:
            model: nn.Module = MODELS.build(settings)
        except (TypeError, KeyError, AssertionError, ValueError) as error:
            raise InputError(f"the model of {config.filename} cannot be built: {error}") from error
        model.init_weights()  # type: ignore[operator]
    return model


def innermost(dataset: Any) -> list[Any]:
    """The data sets inside RepeatDataset, ConcatDataset and other wrappers, or their settings; or the set itself."""
    held = getattr(dataset, "datasets", None) or getattr(dataset, "dataset", None)
    if held is None:
        return [dataset]
    return [inner for part in (held if isinstance(held, list | tuple) else [held]) for inner in innermost(part)]


def build_dataset(config: Config, split: str) -> Any:
    """The data set of a config for 'train', 'val' or 'test', with its pipeline.

    Raises:
        MissingError: if its files are not there.
        InputError: if it cannot be built, or has no samples.
    """
    from vision.openmmlab.datasets import check_label_maps  # it imports mmdet

    settings = copy.deepcopy(config[f"{split}_dataloader"].dataset)
    for part in innermost(settings):
        if part.type in ("CocoDataset", "mmdet.CocoDataset"):
            part.type = "CheckedCocoDataset"
    with DefaultScope.overwrite_default_scope(config.default_scope), quiet():
        try:
            dataset = DATASETS.build(settings)
            if config.default_scope == "mmseg":
                for part in innermost(dataset):
                    check_label_maps(part)
        except FileNotFoundError as error:
            raise MissingError(
                f"the {split} data of {config.filename} are not there: {error}; set their place with --data.options"
            ) from error
        except (TypeError, KeyError, AssertionError, ValueError) as error:
            raise InputError(f"the {split} data of {config.filename} cannot be read: {error!r}") from error
    if len(dataset) == 0:
        raise InputError(f"the {split} data of {config.filename} have no samples; check paths, file endings, classes")
    return dataset
