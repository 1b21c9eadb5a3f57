"""``cache-dit demo``: pictures without and with the cache, side by side."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cache_dit.cli.arguments import UsageError, text, whole_number

if TYPE_CHECKING:
    from rich.console import Console

    from cache_dit.demo.compare import Comparison, Settings

PROMPTS = (
    "flat emoji of woman running, dark skin tone",
    "glossy 3d emoji of juggling, medium skin tone",
    "noto emoji of woman wearing turban, medium-dark skin tone",
    "glossy 3d emoji of cuba flag",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``cache-dit demo``."""
    parser.add_argument(
        "--prompt", type=text, action="append", metavar="TEXT", help="what to draw; may be given several times"
    )
    parser.add_argument("--steps", type=whole_number(1, 1000), default=28, help="denoising steps (default %(default)s)")
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, help="of the noise to begin with (default %(default)s)"
    )
    parser.add_argument(
        "--repeats",
        type=whole_number(1),
        default=3,
        help="runs of which the median time is taken (default %(default)s)",
    )
    parser.add_argument(
        "--threads", type=whole_number(1, 1024), help="processor threads to compute with (default: torch's)"
    )
    parser.add_argument("--device", type=_device, default="cpu", help="where to compute (default %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo_out"), metavar="DIR", help="folder for the files (default %(default)s)"
    )
    parser.add_argument("--model", type=_model, metavar="DIR", help="another FluxPipeline's folder than the package's")
    parser.add_argument("--open", action="store_true", help="open the page in the browser when it is ready")


def run(arguments: argparse.Namespace) -> int:
    """Draw, measure, and write the files."""
    out = _made_folder(arguments.out)
    with _quiet_libraries():
        return _run(arguments, out)


def _run(arguments: argparse.Namespace, out: Path) -> int:
    import torch
    from rich.console import Console

    from cache_dit.demo.compare import Settings
    from cache_dit.demo.figures import rich_table, save_results, unskipped
    from cache_dit.demo.page import save_page
    from cache_dit.demo.sheet import save_sheet
    from cache_dit.report.machine import describe_machine

    console = Console()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    machine = describe_machine(arguments.device)
    console.print(str(machine), style="dim", highlight=False)
    prompts = tuple(arguments.prompt or PROMPTS)
    settings = Settings(prompts, steps=arguments.steps, seed=arguments.seed, repeats=arguments.repeats)
    comparison = _compared(arguments, settings, console)
    console.print(rich_table(comparison))
    for line in unskipped(comparison):
        console.print(line, markup=False, highlight=False)
    page = out / "index.html"
    save_results(out / "results.json", comparison, machine)
    save_sheet(out / "sheet.png", comparison)
    save_page(page, comparison, machine)
    for path, what in ((page, "the page"), (out / "sheet.png", "the sheet"), (out / "results.json", "all figures")):
        console.print(f"{what + ':':<12} {path}", highlight=False, soft_wrap=True)
    if arguments.open:
        import webbrowser

        webbrowser.open(page.as_uri())
    return 0


def _compared(arguments: argparse.Namespace, settings: Settings, console: Console) -> Comparison:
    """Draw everything under a progress bar, which moves between the runs only, to take no time from them."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cache_dit.demo import load_pipeline
    from cache_dit.demo.compare import compare
    from cache_dit.demo.configurations import Configuration, configurations, plan_for

    pipe = load_pipeline(arguments.model, device=arguments.device, progress=False)
    columns = configurations(settings.steps, plan_for(pipe, settings.steps))
    total = settings.repeats * len(settings.prompts) * len(columns) + 2
    parts = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*parts, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=total)
        begun = 0

        def note(prompt: str, configuration: Configuration) -> None:
            nonlocal begun
            progress.update(task, completed=begun, description=f"{prompt}, {configuration.name}", refresh=True)
            begun += 1

        comparison = compare(pipe, settings, columns, note)
        progress.update(task, completed=total, description="done", refresh=True)
    return comparison


def _made_folder(path: Path) -> Path:
    """The output folder, created; refused before anything is computed."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"argument --out: {path} is a file: pass a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "results.json").touch()
    except OSError as error:
        raise UsageError(f"argument --out: cannot write to {path}: {error.strerror or error}") from error
    return path.resolve()


def _device(name: str) -> str:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{name!r} is no device: pass cpu or cuda") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"there is no {name} here: torch finds {torch.cuda.device_count()} GPUs")
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{name!r} is not supported: pass cpu or cuda")
    return name


def _model(name: str) -> Path:
    if not (Path(name) / "model_index.json").is_file():
        raise argparse.ArgumentTypeError(f"{name} is no folder of a pipeline: it has no model_index.json")
    return Path(name)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Leave out what libraries note about parts that the demo does not use, and what our table tells anyway."""
    names = ("diffusers", "transformers", "cache_dit.caching")
    before = {name: logging.getLogger(name).level for name in names}
    from diffusers.utils import logging as _diffusers  # noqa: F401 - sets its own level once, when it is imported
    from transformers.utils import logging as _transformers  # noqa: F401

    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
