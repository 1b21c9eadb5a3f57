"""Which pictures are drawn: captions from a file, and a noise of its own for each."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from bench.quality.method import Picture

CAPTIONS = Path(__file__).parent / "captions.txt"


@cache
def captions() -> dict[str, tuple[str, ...]]:
    """The captions of each section of the file, `search` and `held out`."""
    sections: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, CAPTIONS.read_text(encoding="utf-8").splitlines())):
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            section.append(line)
    return {name: tuple(lines) for name, lines in sections.items()}


def search_pictures(count: int) -> tuple[Picture, ...]:
    """The first pictures that settings are searched on."""
    return _numbered(captions()["search"][:count], 1)


def held_out_pictures(count: int, seeds: int) -> tuple[Picture, ...]:
    """So many pictures that no search has seen: every caption with so many noises, one after the other.

    Raises:
        ValueError: there are not as many captions, or `count` is no multiple of `seeds`.
    """
    held_out = captions()["held out"]
    if count % seeds or count // seeds > len(held_out):
        raise ValueError(
            f"{count} pictures of {seeds} seeds each: expected a multiple of {seeds}, at most {seeds * len(held_out)}"
        )
    return _numbered(held_out[: count // seeds], seeds)


def _numbered(texts: Sequence[str], seeds: int) -> tuple[Picture, ...]:
    return tuple(Picture(text, 1000 * seed + number) for number, text in enumerate(texts) for seed in range(seeds))
