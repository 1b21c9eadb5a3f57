"""How figures look: colours, type, and an SVG that is the same for the same data. Importing this sets matplotlib up."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

COMPUTED, CACHED, INK, SOFT, GRID = "#2a6f97", "#e3a72f", "#1d1c1a", "#8a8780", "#e2dfd8"

#: For many lines in one figure, in this order: told apart on light and dark paper, and by colour-blind readers.
SERIES = (COMPUTED, CACHED, "#3f9b6c", "#c4553b", "#8d6bb8", "#c46f9d", "#7d8c3a", "#2f9e9e", "#a8761a", SOFT)

matplotlib.use("svg")
matplotlib.rc_file(Path(__file__).with_name("style.mplstyle"), use_default_template=False)


def svg(figure: Figure) -> str:
    """A figure as SVG, without anything of the time and the machine; the figure is closed."""
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    lines = (line.rstrip() for line in buffer.getvalue().splitlines())
    return "\n".join(lines) + "\n"


def save(figure: Figure, path: Path) -> None:
    """Write an SVG that is the same for the same data."""
    path.write_text(svg(figure), encoding="utf-8")
