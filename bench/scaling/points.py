"""The sizes that are measured: one of tokens, depth, width and batch grows, the others stay."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.peers.cost import Size

BASE = Size(hidden=256, double=1, single=2, image_tokens=256, text_tokens=64, steps=4)
QUICK_BASE = Size(hidden=64, double=1, single=2, image_tokens=16, text_tokens=4, steps=3)

#: What grows, in the order in which it is measured, with the unit that it is told in.
UNITS = {"tokens": "tokens", "depth": "blocks", "width": "channels", "batch": "samples"}
#: Image tokens; double-stream blocks, with twice as many single-stream ones; channels; samples.
VALUES = {
    "tokens": (64, 144, 256, 576, 1024),
    "depth": (1, 2, 4, 8),
    "width": (64, 128, 256, 512, 768),
    "batch": (1, 2, 4, 8),
}
QUICK_VALUES = {"tokens": (16, 32, 64), "depth": (1, 2), "width": (64, 128, 192), "batch": (1, 2)}


@dataclass(frozen=True)
class Point:
    """One model and its input.

    Args:
        axis: what grows.
        size: of the model and its input.
        batch: samples.
    """

    axis: str
    size: Size
    batch: int = 1

    @property
    def value(self) -> int:
        """Where on its axis it is: tokens of text too, and all blocks."""
        tokens = self.size.image_tokens + self.size.text_tokens
        return {"tokens": tokens, "depth": self.size.blocks, "width": self.size.hidden, "batch": self.batch}[self.axis]

    @property
    def key(self) -> str:
        return f"{self.axis}: {self.value}"


def points(*, quick: bool = False) -> list[Point]:
    """All that are measured."""
    base, values = (QUICK_BASE, QUICK_VALUES) if quick else (BASE, VALUES)
    return [
        *(Point("tokens", replace(base, image_tokens=tokens)) for tokens in values["tokens"]),
        *(Point("depth", replace(base, double=double, single=2 * double)) for double in values["depth"]),
        *(Point("width", replace(base, hidden=hidden)) for hidden in values["width"]),
        *(Point("batch", base, batch) for batch in values["batch"]),
    ]
