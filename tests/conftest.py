"""What every test shares: no network, one thread, the same random numbers each time."""

import os

# Before torch, transformers and huggingface_hub are imported, and inherited by every subprocess.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it gives

# The same examples in every run, so that a failure belongs to the change at hand.
# HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same global random state, whatever ran before it."""
    random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator of the test's own, untouched by the global state."""
    return torch.Generator().manual_seed(0)
