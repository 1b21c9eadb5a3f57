"""What the records say, for those who ask: the supported models as a table, and the presets of a model."""

from __future__ import annotations

from itertools import chain
from typing import Any

from cache_dit.config.base import bad_value
from cache_dit.engine.adapters.block_adapter import BlockAdapter
from cache_dit.errors import UnsupportedModelError
from cache_dit.models.presets import COMMON
from cache_dit.models.record import adapter_of, known_families, record_of, records
from cache_dit.models.unsupported import refusal_of

_SIDE_BY_SIDE = 3
_COLUMNS = {"Cache": "✔", "CP": "✖", "TP": "✖"}  # every record can be cached; parallelism is not in this version


def table() -> list[dict[str, Any]]:
    """The supported models as data that JSON can hold, one row per record, in the order of registration.

    A row has ``family`` (what its pipelines' class names begin with), ``aliases`` (further such names), ``package``
    (where the classes are from), ``transformers`` (class names), ``blocks`` (the block lists' attributes), ``patterns``
    and ``chains`` (one for each of them; lists with the same number decide together), ``separate_cfg`` (whether the
    two calls of guidance take turns where the pipeline does not name them), ``cache`` (True) and ``presets`` (names).
    """
    return [
        {
            "family": record.name,
            "aliases": list(record.aliases),
            "package": record.package,
            "transformers": list(record.transformers),
            "blocks": [blocks.attribute for blocks in record.blocks],
            "patterns": [blocks.pattern.name for blocks in record.blocks],
            "chains": [blocks.chain for blocks in record.blocks],
            "separate_cfg": record.separate_cfg,
            "cache": True,
            "presets": list(record.all_presets()),
        }
        for record in records()
    ]


def supported_matrix(logging: bool = True) -> str:
    """What works with which models: a Markdown table, generated from the records.

    A name stands for every pipeline whose class name begins with it. ``cache_dit.models.table`` has more, as data.

    Args:
        logging: also print it.

    Returns:
        ``| Model | Cache | CP | TP | Model | …``, where CP and TP are context and tensor parallelism.
    """
    cells = [(name, *_COLUMNS.values()) for name in known_families()]
    cells += [("",) * (1 + len(_COLUMNS))] * (-len(cells) % _SIDE_BY_SIDE)
    rows = [cells[start : start + _SIDE_BY_SIDE] for start in range(0, len(cells), _SIDE_BY_SIDE)]
    head = ["Model", *_COLUMNS] * _SIDE_BY_SIDE
    lines = [head, ["---"] * len(head), *(list(chain.from_iterable(row)) for row in rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if logging:
        print(text)
    return text


def preset(pipe_or_adapter: Any, name: str = "default") -> dict[str, Any]:
    """Options that suit a model, for ``enable_cache(pipe, **preset(pipe))``.

    Args:
        pipe_or_adapter: a pipeline, a transformer or a ``BlockAdapter``.
        name: ``"default"``, which is what ``enable_cache(pipe)`` does; ``"serving"``, the defaults of the reference's
            server; or one of the model's own: ``cache_dit.models.table()`` lists them.

    Returns:
        ``cache_config``, ``calibrator_config`` and ``params_modifiers``. They are new, and may be changed.

    Raises:
        ConfigError: if the model has no preset of that name; the message names those that it has.
        UnsupportedModelError: if there is no record of the model.
    """
    adapter = pipe_or_adapter if isinstance(pipe_or_adapter, BlockAdapter) else adapter_of(pipe_or_adapter)
    if adapter is None:
        raise UnsupportedModelError(
            refusal_of(pipe_or_adapter)
            or f"there is no record of {type(pipe_or_adapter).__name__}, and so no preset: pass a BlockAdapter that "
            f"describes it, or see cache_dit.supported_pipelines()"
        )
    targets = adapter.targets()
    transformer = targets[0].transformer
    record = record_of(transformer)
    presets = dict(COMMON) if record is None else record.all_presets()
    if name not in presets:
        raise bad_value("name", name, f"a preset of {type(transformer).__name__}: {' or '.join(map(repr, presets))}")
    return presets[name].arguments(sum(len(target.chains) for target in targets))
