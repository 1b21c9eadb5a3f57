"""``cache-dit plan``: find the schedule that gives a quality or a speed-up, and write it as a plan."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cache_dit.cli.arguments import UsageError, text, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``cache-dit plan``."""
    parser.add_argument(
        "--model", type=text, required=True, metavar="PATH", help="a pipeline's folder, or 'demo' for the demo model"
    )
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="one prompt a line")
    parser.add_argument("--steps", type=whole_number(4, 1000), default=28, help="denoising steps (default %(default)s)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--target-psnr", type=_number, metavar="DB", help="mean PSNR to reach")
    target.add_argument("--speedup", type=_number, metavar="TIMES", help="ideal speed-up to reach")
    target.add_argument("--full-steps", type=whole_number(2), metavar="N", help="number of full steps")
    target.add_argument("--curve", action="store_true", help="plan the whole curve (the default)")
    parser.add_argument("--budget", type=_number, metavar="SECONDS", help="what the runs may take, about")
    parser.add_argument("--max-runs", type=_number, metavar="N", help="the same as so many uncached runs")
    parser.add_argument("--holdout", type=_number, metavar="SHARE", help="of the prompts kept apart (default: a half)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of the noise (default %(default)s)")
    parser.add_argument(
        "--call", type=_object, default={}, metavar="JSON", help="further arguments of the pipeline's call"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="to compute in")
    parser.add_argument("--device", default="cpu", help="where to compute (default %(default)s)")
    parser.add_argument("--threads", type=whole_number(1, 1024), help="processor threads (default: torch's)")
    parser.add_argument("--out", type=Path, default=Path("plan.json"), metavar="FILE", help="the plan (%(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curve, as .svg or .png")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="keep what is found, to go on after a break")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Plan, print, write."""
    import torch
    from rich.console import Console

    from cache_dit.errors import ConfigError
    from cache_dit.planning import plan
    from cache_dit.planning.inputs import check_call
    from cache_dit.planning.report import lines, rich_table, save_plot

    prompts = _prompts(arguments.prompts)
    for path in filter(None, (arguments.out, arguments.plot)):
        if not path.resolve().parent.is_dir():
            raise UsageError(f"{path} cannot be written: its folder is not there")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    pipe = _pipeline(arguments)
    try:
        check_call(pipe, arguments.call)
    except ConfigError as error:
        raise UsageError(f"argument --call: {error}") from error
    found = plan(
        pipe,
        prompts,
        arguments.steps,
        target_psnr=arguments.target_psnr,
        speedup=arguments.speedup,
        full_steps=arguments.full_steps,
        call=arguments.call,
        budget_s=arguments.budget,
        max_runs=arguments.max_runs,
        holdout=arguments.holdout,
        seed=arguments.seed,
        checkpoint=arguments.checkpoint,
        progress=not arguments.quiet,
    )
    found.save(arguments.out)
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(rich_table(found))
    for line in lines(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"the plan: {arguments.out}", highlight=False, soft_wrap=True)
    if arguments.plot is not None:
        save_plot(found, arguments.plot)
        console.print(f"the plot: {arguments.plot}", highlight=False, soft_wrap=True)
    return 0


def _pipeline(arguments: argparse.Namespace) -> Any:
    import torch

    dtype = getattr(torch, arguments.dtype)
    if arguments.model == "demo":
        from cache_dit.demo import load_pipeline

        return load_pipeline(torch_dtype=dtype, device=arguments.device, progress=False)
    if not (Path(arguments.model) / "model_index.json").is_file():
        raise UsageError(f"argument --model: {arguments.model} is no folder of a pipeline: it has no model_index.json")
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(arguments.model, torch_dtype=dtype, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(arguments.device)


def _prompts(path: Path) -> list[str]:
    """The lines of a file that are not empty; of a .jsonl file, each line's "prompt" or "caption"."""
    try:
        given = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in given]
            given = [str(row.get("prompt", row.get("caption", ""))) for row in rows]
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"argument --prompts: {path} cannot be read: {error}") from error
    if not given or not all(given):
        raise UsageError(f"argument --prompts: {path} has no prompts: write one a line")
    return given


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {value!r}")
    return number


def _object(value: str) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'expected a JSON object such as {{"guidance_scale": 3.5}}, got {value!r}')
    return found
