"""The comparison as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib import resources
from pathlib import Path

from PIL import Image

from cache_dit.config.cache import DBCacheConfig
from cache_dit.demo.compare import Comparison, Drawing
from cache_dit.demo.configurations import Configuration
from cache_dit.demo.fidelity import AMPLIFICATION, Pixels, difference
from cache_dit.demo.figures import column_figures, decibels, steps_text, times
from cache_dit.engine.plans.plan import Plan
from cache_dit.report.machine import Machine
from cache_dit.summary import strify_options

#: The page may load nothing, wherever it is opened.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_CELLS = {"F": "<i></i>", "C": '<i class="c"></i>', "-": '<i class="n"></i>'}


def save_page(path: Path, comparison: Comparison, machine: Machine) -> None:
    """Write the page.

    Args:
        path: the file.
        comparison: what to show.
        machine: what measured it.
    """
    css = resources.files("cache_dit.demo").joinpath("page.css").read_text(encoding="utf-8")
    rows = "\n".join(_row(row) for row in comparison.rows)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cache-dit: the same pictures with and without the cache</title>
<style>
{css}</style>
</head>
<body style="--columns: {len(comparison.configurations)}">
<main>
{_head(comparison, machine)}
<div class="top">
{_table(comparison)}
{_how_to_read()}
</div>
<div class="toggle"><label><input type="checkbox" id="differences">
Show all differences, amplified {AMPLIFICATION} times</label></div>
{rows}
{_explanations(comparison)}
</main>
</body>
</html>
"""
    path.write_text(page, encoding="utf-8")


def _head(comparison: Comparison, machine: Machine) -> str:
    settings = comparison.settings
    runs = "one run each" if settings.repeats == 1 else f"times are medians of {settings.repeats} runs that took turns"
    return f"""<h1>The same pictures, with and without the cache</h1>
<p class="lead">A diffusion transformer runs all its blocks at every denoising step, though neighbouring steps
hardly differ. The cache skips blocks where that is so and predicts what they would have added.</p>
<p class="small">{settings.steps} steps, seed {settings.seed}; {runs}.<br>{escape(str(machine))}</p>"""


def _table(comparison: Comparison) -> str:
    heads = ("configuration", "steps", "blocks", "time", "speed-up", "ideal", "PSNR", "worst")
    kinds = [' class="extra"' if name in ("blocks", "ideal", "worst") else "" for name in heads]  # left out on a phone
    lines = []
    for index, row in enumerate(column_figures(comparison)):
        fidelity = ("", "") if index == 0 else (decibels(row.psnr), decibels(row.worst_psnr))
        cells = (
            steps_text(row),
            f"{row.executed_blocks / row.possible_blocks:.0%}",
            f"{row.median_seconds:.2f} s",
            f'<span class="fast">{times(row.speedup)}</span>' if index else "",
            times(row.ideal_speedup) if index else "",
            *fidelity,
        )
        line = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], cells, strict=True))
        lines.append(f'<tr><th scope="row">{escape(row.name)}</th>{line}</tr>')
    head = "".join(f'<th scope="col"{kind}>{name}</th>' for kind, name in zip(kinds, heads, strict=True))
    return f"""<div>
<div class="scroll"><table><thead><tr>{head}</tr></thead>
<tbody>
{chr(10).join(lines)}
</tbody></table></div>
<p class="small">Steps computed and blocks run, of all. Over all prompts: time and PSNR are medians, speed-ups geometric
means, worst is the lowest PSNR.</p>
</div>"""


def _how_to_read() -> str:
    computed, cached = (f'<span class="steps key" aria-hidden="true">{_CELLS[letter]}</span>' for letter in "FC")
    return f"""<aside class="read"><h2>How to read this page</h2>
<ul>
<li>A row is a prompt, a column a configuration. The first picture is the uncached one.</li>
<li>Point at a picture, tap it, or reach it with the Tab key: you see its difference from the uncached one,
amplified {AMPLIFICATION} times. Black is no difference.</li>
<li>The line of cells is the course of the steps: {computed} tall, computed in full; {cached} low, skipped and
predicted.</li>
<li><b>Speed-up</b> is measured, prompt to pixels. <b>Ideal</b> is what the number of skipped blocks alone would
give.</li>
<li><b>PSNR</b> says how close a picture is to the uncached one, in decibels: higher is closer.</li>
</ul></aside>"""


def _row(row: tuple[Drawing, ...]) -> str:
    figures = "\n".join(_figure(drawing, row[0]) for drawing in row)
    return (
        f'<section>\n<h2 class="prompt">{escape(row[0].prompt)}</h2>\n<div class="row">\n{figures}\n</div>\n</section>'
    )


def _figure(drawing: Drawing, uncached: Drawing) -> str:
    prompt, name = escape(drawing.prompt), escape(drawing.configuration.name)
    picture = f'<img src="{_data_uri(drawing.pixels)}" width="64" height="64" alt="{prompt}, {name}">'
    blocks = f"{drawing.stats.executed_blocks} of {drawing.stats.possible_blocks} blocks"
    seconds = f"{drawing.median_seconds:.2f} s"
    if drawing is uncached:
        shown = f'<div class="picture">{picture}</div>'
        main = f"<b>{seconds}</b>"
        rest = blocks
    else:
        about = (
            f"difference of {name} from the uncached picture, {decibels(drawing.psnr)}, amplified {AMPLIFICATION} times"
        )
        image = _data_uri(difference(uncached.pixels, drawing.pixels))
        over = f'<img src="{image}" width="64" height="64" alt="{about}"><span>difference × {AMPLIFICATION}</span>'
        shown = f'<div class="picture" tabindex="0">{picture}<div class="difference">{over}</div></div>'
        main = f'<b class="fast">{times(drawing.speedup)}</b><span>{decibels(drawing.psnr)}</span>'
        rest = f"{seconds}, ideal {times(drawing.stats.ideal_speedup)}<br>{blocks}"
    reason = f"<br>Nothing was skipped: {escape(drawing.stats.reason)}" if drawing.stats.reason else ""
    return f"""<figure>{shown}
<figcaption>{_step_lines(drawing)}
<span class="name">{name}</span><span class="main">{main}</span>{rest}{reason}</figcaption>
</figure>"""


def _step_lines(drawing: Drawing) -> str:
    """The course of the steps as cells: a line for each branch of guidance."""
    lines = drawing.stats.steps_line
    return "".join(
        f'<div class="steps" role="img" aria-label="{escape(branch) + ": " if len(lines) > 1 else ""}'
        f'{line.count("F")} of {len(line) - line.count("-")} steps computed: {line}">'
        f"{''.join(_CELLS[letter] for letter in line)}</div>"
        for branch, line in lines.items()
    )


def _explanations(comparison: Comparison) -> str:
    entries = "".join(_explanation(configuration) for configuration in comparison.configurations)
    return f"<section>\n<h2>The configurations</h2>\n<dl>{entries}</dl>\n</section>"


def _explanation(configuration: Configuration) -> str:
    tag = ""
    if configuration.cache is not None:
        cache = configuration.cache
        config = DBCacheConfig(plan=cache) if isinstance(cache, Plan) else cache
        options = {"cache_config": config, "calibrator_config": configuration.calibrator}
        tag = f"<br><code>{escape(strify_options(options))}</code>"
    return f"<dt>{escape(configuration.name)}</dt><dd>{escape(configuration.explanation)}{tag}</dd>"


def _data_uri(pixels: Pixels) -> str:
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def to_image(pixels: Pixels) -> Image.Image:
    """An 8-bit picture of values in 0 … 1, rounded as diffusers does."""
    return Image.fromarray((pixels * 255).round().astype("uint8"))
