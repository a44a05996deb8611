"""What a config sets for ``Runner`` and Lightning does not use."""

from pathlib import Path
from typing import Any

from mmengine.config import Config

__all__ = ["unused_settings"]


def unused_settings(config: Config, *, pretrained: bool, weights: str | None) -> str | None:
    """One sentence that names them and what to set instead; None where there is nothing to say.

    Args:
        config: what :func:`vision.openmmlab.models.read_config` gives.
        pretrained: whether the file in ``init_cfg`` of the backbone is loaded.
        weights: a file that is loaded into the model.
    """
    name = Path(config.filename or "the config").name
    if name.endswith("_a_digit_scenes.py"):
        return None  # det.yaml and seg.yaml have what these set
    found = _optimization(config)
    if hooks := [_kind(hook) for hook in config.get("custom_hooks", None) or []]:
        averages = any("EMA" in kind for kind in hooks)
        found[f"custom_hooks ({', '.join(hooks)})"] = ["--trainer.callbacks+ EMA"] if averages else []
    if weights is None:
        init = config.model.get("backbone", {}).get("init_cfg")
        if init and not pretrained:
            found["init_cfg of the backbone"] = ["--model.pretrained true"]
        if config.get("load_from"):
            found["load_from"] = [f"--model.weights {config.load_from}"]
    if not found:
        return None
    instead = "; set " + ", ".join(options) if (options := [o for part in found.values() for o in part]) else ""
    return f"{name}: Lightning does not use its {', '.join(found)}{instead}"


def _optimization(config: Config) -> dict[str, list[str]]:
    """The config's optimizer and schedule, and the options of a task that stand for them."""
    found: dict[str, list[str]] = {}
    if wrapper := config.get("optim_wrapper"):
        optimizer, decays = wrapper.get("optimizer", {}), wrapper.get("paramwise_cfg") or {}
        values: dict[str, Any] = {
            "--model.lr": optimizer.get("lr"),
            "--model.layer_decay": rate if (rate := decays.get("decay_rate", 1.0)) < 1 else None,
            "--trainer.gradient_clip_val": (wrapper.get("clip_grad") or {}).get("max_norm"),
        }
        found["optim_wrapper"] = [f"{option} {value}" for option, value in values.items() if value is not None]
    if config.get("param_scheduler"):
        found["param_scheduler"] = ["--model.warmup_epochs EPOCHS"]
    return found


def _kind(hook: Any) -> str:
    return str(hook.get("type"))
