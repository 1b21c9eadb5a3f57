"""One random pipeline folder for all tests of the demo."""

from pathlib import Path

import pytest

from tests.demo.tiny import save_tiny_pipeline


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny_flux"))
