"""The memory of this machine, and options with which a single sample would take too much of it."""

import os

from core.errors import InputError

__all__ = ["check_sample_memory", "machine_memory"]

_SHARE = 1 / 8
"""Largest share of the memory for one sample: a batch has several, and a network needs many times the size of a map."""


def machine_memory() -> int | None:
    """Return the size of the machine's memory in bytes, or None if Python cannot tell, as on Windows."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_sample_memory(needed: int, options: str) -> None:
    """Raise an error if one sample or its map would take more than an eighth of the machine's memory.

    Args:
        needed: size of the sample or its map in bytes, whichever is larger.
        options: the options that decide about it, with their values, such as 'size=100000'.

    Raises:
        InputError: if it takes more.
    """
    memory = machine_memory()
    if memory is not None and needed > memory * _SHARE:
        raise InputError(
            f"{options}: one sample would take {needed / 2**30:,.1f} GiB, and this machine has "
            f"{memory / 2**30:.1f} GiB of memory, of which a sample may take an eighth; choose smaller numbers"
        )
