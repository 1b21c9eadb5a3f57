"""What the pages' code registers is gone after its test, whatever test the same process runs next."""

from __future__ import annotations

import pytest

from cache_dit.engine.adapters import registry as adapters
from cache_dit.engine.policies import registry as policies
from cache_dit.engine.predictors import registry as predictors


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((adapters, "registered"), (policies, "_factories"), (predictors, "_registry")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
