"""What the baselines share: the data of the configuration that the command line names."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from core.errors import InputError, listed

__all__ = ["data_of"]


def data_of(text: str, default: str, sets: dict[str, Any]) -> Any:
    """The data module of a configuration, its data at hand; the command ends with a message where there is none.

    Args:
        text: the script's docstring, whose first line is its description.
        default: the configuration if none is named.
        sets: classes of data modules by the name that configurations give them.
    """
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument(
        "config", nargs="?", type=Path, default=default, help=f"of {listed(sets)}; by default {default}"
    )
    config, wanted = parser.parse_args().config, f"expected the file of a configuration of {listed(sets)}"
    try:
        section = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
        name, options = section["class_path"], section.get("init_args") or {}
    except OSError as error:
        parser.error(f"{config} cannot be read ({error.strerror}); {wanted}")
    except (KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError):
        parser.error(f"{config} names no data; {wanted}")
    if name not in sets:
        parser.error(f"{config} is of {name}; {wanted}")
    try:
        data = sets[name](**options)
        data.prepare_data()
    except InputError as error:
        parser.error(str(error))
    return data
