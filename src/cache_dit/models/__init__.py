"""The model families: each a file with one record. A new file is found by itself."""

from __future__ import annotations

from cache_dit.models import families as families  # a record registers itself when its file is imported
from cache_dit.models.catalog import preset, supported_matrix, table
from cache_dit.models.presets import Preset
from cache_dit.models.record import (
    Blocks,
    ModelRecord,
    adapter_of,
    known_pipelines,
    record_of,
    register_model,
    transformers_of,
)

__all__ = [
    "Blocks",
    "ModelRecord",
    "Preset",
    "adapter_of",
    "known_pipelines",
    "preset",
    "record_of",
    "register_model",
    "supported_matrix",
    "table",
    "transformers_of",
]
