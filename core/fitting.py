"""Fit the tensors of a file to a model, and say by name what does not fit."""

import logging
import re

from timm.models import adapt_input_conv
from torch import Tensor, nn

from core.errors import InputError, listed

__all__ = ["StateDict", "fit", "warn_of_lost_norms"]

_logger = logging.getLogger("core.checkpoints")  # what a user of load_weights knows
_OUTPUT_PART = re.compile(r"^(norm\d*|stages\.\d+\.norm)\.")
_STAGE_NORM = re.compile(r"^stages\.\d+\.norm\.")
_FEATURE_NORM = re.compile(r"^(norm\d+|stages\.\d+\.norm)\.")

StateDict = dict[str, Tensor]


def fit(state_dict: StateDict, model: nn.Module, *, where: str, adapt_stem: bool = True) -> StateDict:
    """The tensors of a file that a model loads, once all others are known to be dispensable.

    Args:
        state_dict: of the file, under the model's names.
        model: what they are for.
        where: what the file is called in messages.
        adapt_stem: give the first convolution the model's number of input channels; else leave that to the caller.

    Raises:
        InputError: if they do not fit; the message names what is missing, too much, or of another shape.
    """
    own = model.state_dict()
    state_dict = dict(state_dict)
    stem = next((f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), "")
    if stem in state_dict and state_dict[stem].ndim == 4 and state_dict[stem].shape[1] != own[stem].shape[1]:
        if adapt_stem:
            state_dict[stem] = _adapt_stem(state_dict[stem], own[stem].shape[1], f"{stem} of {where}")
        else:  # timm adapts it after this hook
            own[stem] = state_dict[stem]
    if hasattr(model, "norm_in_head"):
        _refuse_lost_norm(state_dict, own, where)
    _drop_output_parts(state_dict, own, _classifier_name(model), where)
    _compare(state_dict, own, where)
    return state_dict


def warn_of_lost_norms(state_dict: StateDict, own: StateDict, *, where: str) -> None:
    """Say so where a file has norms for the maps of stages that a model without such norms, ``own``, has too."""
    stages = {name.rsplit(".norm.", 1)[0] for name in state_dict if _STAGE_NORM.match(name)}
    lost = sorted(stage for stage in stages if any(name.startswith(f"{stage}.") for name in own))
    if lost:
        names = ", ".join(f"{stage}.norm" for stage in lost)
        _logger.warning(
            "%s was trained with norms on its maps (%s), and this model has none; build it with feature_norms=True to "
            "keep them",
            where,
            names,
        )


def _adapt_stem(weight: Tensor, channels: int, where: str) -> Tensor:
    try:
        return adapt_input_conv(channels, weight)
    except (AssertionError, NotImplementedError):
        raise InputError(
            f"{where} takes {weight.shape[1]} input channels, the model {channels}; only files for 3 channels adapt. "
            f"Build the model with in_chans={weight.shape[1]}"
        ) from None


def _classifier_name(model: nn.Module) -> str:
    get = getattr(model, "get_classifier", None)
    classifier = get() if callable(get) else None
    return next((name for name, module in model.named_modules() if module is classifier), "head")


def _refuse_lost_norm(state_dict: StateDict, own: StateDict, where: str) -> None:
    """In inference form the last norm's scale and shift are in the classifier, without which they are lost."""
    if "head.weight" not in state_dict or "head.weight" in own or "norm.weight" not in own:
        return
    scale, shift = state_dict.get("norm.weight"), state_dict.get("norm.bias")
    plain = scale is None or shift is None or bool((scale == 1).all() and (shift == 0).all())
    if plain and not any(name.endswith("running_var") for name in state_dict):
        raise InputError(
            f"{where} is folded, with the last norm in its classifier, and the model has none: its vectors would lack "
            f"the norm. Build it with num_classes={len(state_dict['head.weight'])}, or load what was not folded"
        )


def _drop_output_parts(state_dict: StateDict, own: StateDict, classifier: str, where: str) -> None:
    """Take out of both sides what may differ: a classifier of another size, and norms after the stages."""
    _drop_other_classifier(state_dict, own, classifier, where)
    fresh = _fresh_parts(state_dict, own, classifier)
    for name in fresh:
        del own[name]
    if fresh:
        _logger.warning("%s has no %s: they keep their initial weights", where, listed(fresh))
    for name in [name for name in state_dict if _OUTPUT_PART.match(name) and name not in own]:
        del state_dict[name]


def _drop_other_classifier(state_dict: StateDict, own: StateDict, classifier: str, where: str) -> None:
    """Take the file's classifier out of both sides unless the model has one for as many classes."""
    head = f"{classifier}.weight"
    if head not in state_dict or (head in own and len(own[head]) == len(state_dict[head])):
        return
    if head in own:
        classes, wanted = len(state_dict[head]), len(own[head])
        _logger.warning("%s has %d classes, the model %d: a new classifier is trained", where, classes, wanted)
    for name in (head, f"{classifier}.bias"):
        state_dict.pop(name, None)
        own.pop(name, None)


def _fresh_parts(state_dict: StateDict, own: StateDict, classifier: str) -> list[str]:
    """What the model has after its stages and the file may lack; a classifier of the file needs its own last norm."""
    wanted, given = f"{classifier}.weight" in own, f"{classifier}.weight" in state_dict
    head = [name for name in own if name.startswith(f"{classifier}.")] if wanted and not given else []
    norms = _FEATURE_NORM if wanted and given else _OUTPUT_PART
    return head + [name for name in own if norms.match(name) and name not in state_dict]


def _compare(state_dict: StateDict, own: StateDict, where: str) -> None:
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    shapes = [
        f"{name} {tuple(state_dict[name].shape)} where the model has {tuple(own[name].shape)}"
        for name in own
        if name in state_dict and state_dict[name].shape != own[name].shape
    ]
    if not (missing or unexpected or shapes):
        return
    lines = [f"{where} does not fit the model."]
    for title, names in (("Missing", missing), ("Unexpected", unexpected), ("Other shape", shapes)):
        if names:
            lines.append(f"  {title}: {listed(names)}")
    raise InputError("\n".join([*lines, f"  {_advice(state_dict, own, missing, unexpected, shapes)}"]))


def _advice(state_dict: StateDict, own: StateDict, missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    def has_norms(names: list[str]) -> bool:
        return any(name.endswith("running_var") for name in names)

    if shapes and not missing and not unexpected and all("head." in line for line in shapes):
        return "The heads of the file have other classes: give the model as many, or load the file into its backbone."
    if not has_norms(list(own)) and has_norms(list(state_dict)) and any("lkb_reparam" in name for name in state_dict):
        return "The file has norms left: build with small_kernel_merged=True, load it, then call core.reparameterize."
    if any("lkb_reparam" in name for name in unexpected) and has_norms(list(state_dict)):
        return "The small kernels of the file are merged: build the model with small_kernel_merged=True."
    if any("lkb_reparam" in name for name in missing) and has_norms(list(own)):
        return "The file is in training form: load it before model.merge_small_kernels()."
    if not has_norms(list(own)) and has_norms(unexpected):
        return "The file is in training form: load it before core.reparameterize, or build with inference_mode=False."
    if not has_norms(list(state_dict)) and has_norms(missing):
        return "The file is in inference form: build the model with inference_mode=True."
    if unexpected and not missing and all(re.search(r"(^|\.)stages\.\d+\.norm\.", name) for name in unexpected):
        return "The file was trained with norms on its maps: build its backbone with feature_norms=True."
    return "Build the variant that the file was saved from: same depths, dims and kernel_sizes."
