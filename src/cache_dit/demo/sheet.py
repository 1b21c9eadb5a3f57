"""The comparison as one PNG: what the page shows, for places that show no pages."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cache_dit.demo.compare import Comparison, Drawing
from cache_dit.demo.figures import column_figures, decibels, times
from cache_dit.demo.page import to_image

_PAPER, _INK, _SOFT, _LINE_COLOUR = "#ffffff", "#1d1c1a", "#65625c", "#e2dfd8"
_CELLS = {"F": ("#2a6f97", 14), "C": ("#e3a72f", 6), "-": (_LINE_COLOUR, 2)}  # colour and height
_PICTURE, _GAP, _MARGIN, _LABEL = 192, 18, 24, 130
_HEAD, _LINE = 62, 20


def save_sheet(path: Path, comparison: Comparison) -> None:
    """Write the sheet: a row for each prompt, a column for each configuration.

    Args:
        path: the file.
        comparison: what to show.
    """
    branches = max(len(drawing.stats.steps_line) for row in comparison.rows for drawing in row)
    pitch = _PICTURE + 12 + _LINE + branches * (_LINE - 2) + _GAP
    width = 2 * _MARGIN + _LABEL + len(comparison.configurations) * (_PICTURE + _GAP) - _GAP
    sheet = Image.new("RGB", (width, 2 * _MARGIN + _HEAD + len(comparison.rows) * pitch - _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, figures in enumerate(column_figures(comparison)):
        left = _left(index)
        draw.text((left, _MARGIN), _letters(figures.name), _INK, _font(22))
        text = f"{_times(figures.speedup)}, {decibels(figures.psnr)}" if index else f"{figures.median_seconds:.2f} s"
        draw.text((left, _MARGIN + 30), text, _SOFT, _font(17))
    for number, row in enumerate(comparison.rows):
        top = _MARGIN + _HEAD + number * pitch
        prompt = "\n".join(textwrap.wrap(row[0].prompt, 13))
        draw.multiline_text((_MARGIN, top), prompt, _INK, _font(18), spacing=6)
        for index, drawing in enumerate(row):
            _cell(sheet, draw, (_left(index), top), drawing, first=index == 0)
    sheet.save(path, optimize=True)


def _left(index: int) -> int:
    return _MARGIN + _LABEL + index * (_PICTURE + _GAP)


def _cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int], drawing: Drawing, *, first: bool
) -> None:
    """A picture, its figures, and its step lines."""
    left, top = place
    picture = to_image(drawing.pixels).resize((_PICTURE, _PICTURE), Image.Resampling.NEAREST)
    sheet.paste(picture, place)
    draw.rectangle((left, top, left + _PICTURE - 1, top + _PICTURE - 1), outline=_LINE_COLOUR)
    top += _PICTURE + 6
    blocks = f"{drawing.stats.executed_blocks} of {drawing.stats.possible_blocks} blocks"
    text = blocks if first else f"{_times(drawing.speedup)}   {decibels(drawing.psnr)}"
    draw.text((left, top), text, _SOFT, _font(15))
    for line in drawing.stats.steps_line.values():
        top += _LINE
        for step, letter in enumerate(line):
            start, end = (left + round(edge * _PICTURE / len(line)) for edge in (step, step + 1))
            colour, height = _CELLS[letter]
            draw.rectangle((start, top + 16 - height, max(end - 2, start), top + 15), colour)


def _times(factor: float) -> str:
    return _letters(times(factor))


def _letters(text: str) -> str:
    """A text in letters of Pillow's own font, which has no multiplication sign."""
    return text.replace("×", "x")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
