"""Fixtures that every test may use, and global state put back after each."""

import os
import random
import signal
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start; one test runs on each core

import hypothesis
import numpy as np
import pytest
import torch

hypothesis.settings.register_profile("untimed", deadline=None)  # a machine that is busy for a moment is no failure
hypothesis.settings.load_profile("untimed")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job, where what is stopped here would go on
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _restored_state() -> Iterator[None]:
    """Same random numbers for every test, and dtype, threads and seed variables as they were.

    One thread: the nets here are so small that threads cost more than they save.
    """
    dtype, seed, threads = torch.get_default_dtype(), os.environ.pop("PL_GLOBAL_SEED", None), torch.get_num_threads()
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.environ.pop("LARKIT_RUN", None)
    if seed is not None:
        os.environ["PL_GLOBAL_SEED"] = seed
