"""What every test shares: no network, one thread, the same random numbers each time, and the marker ``numeric``."""

import os

# Before torch, transformers and huggingface_hub are imported, and inherited by every subprocess.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import inspect
import random
from types import CodeType, FunctionType

import pytest
import torch

from tests.kit import repeatable  # noqa: F401
from tests.kit.rounding import round_by_shape

# The models are tiny: a second thread costs more than it gives. ``make test-cpus`` asks for two.
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

if os.environ.get("CACHE_DIT_TESTS_ROUND_BY_SHAPE"):  # ``make test-cpus``
    round_by_shape()


def pytest_report_header() -> str:
    return f"kernels: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``numeric`` what compares results of kernels: by the kit's ``same`` or ``close``, or ``torch.equal``."""
    known: dict[FunctionType, bool] = {}
    for item in items:
        if isinstance(item, pytest.Function) and _compares(item.function, known):
            item.add_marker(pytest.mark.numeric)


def pytest_collection_finish() -> None:
    """What the imports made stays: the garbage collector need not look through it at each of its collections."""
    gc.collect()
    gc.freeze()


def _compares(function: FunctionType, known: dict[FunctionType, bool]) -> bool:
    """Whether a function of the tests, or one that it calls by name, does so."""
    function = inspect.unwrap(function)  # of torch.no_grad
    if function not in known:
        known[function] = False  # while it is looked into
        names = _names(function.__code__)
        called = [function.__globals__.get(name) for name in names]
        helpers = [one for one in called if isinstance(one, FunctionType) and one.__module__.startswith("tests.")]
        known[function] = "equal" in names or any(
            one.__module__ == "tests.kit.equality" or _compares(one, known) for one in helpers
        )
    return known[function]


def _names(code: CodeType) -> set[str]:
    """All names that a function uses, inner functions included."""
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return {*code.co_names}.union(*map(_names, inner))


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
