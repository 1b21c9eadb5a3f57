"""What all tests of the benches have in common."""

import logging
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def quiet_and_alone() -> Iterator[None]:
    """The benches silence the package's log and set the threads; the tests after them find both as before."""
    logger = logging.getLogger("cache_dit")
    level, threads = logger.level, torch.get_num_threads()
    logger.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    yield
    logger.setLevel(level)
    torch.set_num_threads(threads)
    torch._dynamo.reset()
