"""The page ``docs/supported_models.md``, made from the records by ``python -m tools.docs.models``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cache_dit.models.catalog import table
from cache_dit.models.presets import COMMON
from cache_dit.models.record import records
from cache_dit.models.unsupported import UNSUPPORTED

PAGE = Path(__file__).parent.parent.parent / "docs" / "supported_models.md"

_HEAD = """\
<!-- made by python -m tools.docs.models -->
<!-- setup: demo -->
# Supported models

A family's name stands for every pipeline whose class name begins with it. A transformer is found by the name of its
class, or of any class that it derives from: a subclass of your own, or a class of the same name in another package,
needs no record of its own. `cache-dit models` prints this table, `cache-dit models --json` gives it as data.

*Pattern* is how the blocks are called ([patterns](cache/models.md#patterns)), in the order of the lists. *CFG*: the
conditional and the unconditional prediction are two calls of the transformer, which take turns where the pipeline
does not name them.
"""

_PRESETS = """\

## Presets

Options to begin with, by name:

```python
cache_dit.enable_cache(pipe, **cache_dit.preset(pipe, "serving"))
```

Every model has `default`, which is also what `enable_cache(pipe)` and `preset(pipe)` choose
([what it does](choose.md#where-nothing-is-named)), and `serving`; some have others. What a preset does not say is as in
`serving`.
"""

_REFUSED = """\

## What cannot be cached

`enable_cache` refuses these, and says why. Subclasses count.
"""


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)) + "\n"


def _families() -> str:
    rows = (
        (
            _code([row["family"], *row["aliases"]]) + ("" if row["package"] == "diffusers" else f" ({row['package']})"),
            _code(row["transformers"]),
            _code(row["blocks"]),
            ", ".join(pattern.removeprefix("Pattern_") for pattern in row["patterns"]),
            "two calls" if row["separate_cfg"] else "",
        )
        for row in table()
    )
    return _markdown(("family", "transformers", "blocks", "pattern", "CFG"), rows)


def _presets() -> str:
    named = [("every model" if name == "default" else "every other", name, preset) for name, preset in COMMON.items()]
    named += [(f"`{record.name}`", name, preset) for record in records() for name, preset in record.presets.items()]
    rows = []
    for family, name, preset in named:
        arguments = preset.arguments(len(preset.chains))
        own = [modifier.cache_config.given() for modifier in arguments["params_modifiers"] or []]
        options = f"`{arguments['cache_config'].strify()}`"
        for number, given in enumerate(own, start=1):
            if given:
                options += f"; chain {number}: " + _code(f"{option}={value}" for option, value in given.items())
        if preset.calibrator is not None:
            options += f"; `{preset.calibrator}`"
        rows.append((family, f"`{name}`", preset.purpose, options, preset.source))
    return _markdown(("family", "preset", "for", "options", "source"), rows)


def _refused() -> str:
    reasons: dict[str, list[str]] = {}
    for name, reason in UNSUPPORTED.items():
        reasons.setdefault(reason, []).append(name)
    return _markdown(("classes", "why"), ((_code(names), reason) for reason, names in reasons.items()))


def page() -> str:
    """The page's text."""
    return "\n".join([_HEAD, _families() + _PRESETS, _presets() + _REFUSED, _refused()])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
