"""``cache-dit bench``: its commands, the arguments that they share, and the report that follows a run.

Everything heavy is imported when a command runs, not before.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dit.cli.application import run_one
from cache_dit.cli.arguments import Command, UsageError, whole_number
from cache_dit.errors import MissingDependencyError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.results import Results

ROOT = Path(__file__).parent.parent
#: Results that are committed, and those of quick runs with all reports, which are not.
COMMITTED, BUILT = ROOT / "bench" / "results", ROOT / "build" / "bench"


def main(arguments: Sequence[str] | None = None, *, prog: str = "cache-dit bench") -> int:
    """Run a bench with what was typed after the program's name; the exit status is as that of `cache_dit.cli.main`."""
    return run_one(prog, "What the cache costs and gives, on this machine.", COMMANDS, arguments)


# -- what every bench takes


def _declare(parser: argparse.ArgumentParser, command: str) -> None:
    """The options of ``commands.yaml`` by name: the help of a flag, or what ``add_argument`` takes."""
    import yaml

    options = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))[command]
    for name, told in options.items():
        given = {"help": told, "action": "store_true"} if isinstance(told, str) else dict(told)
        if "whole" in given:
            given = {"type": whole_number(*given.pop("whole")), "metavar": "N", **given}
        if given.get("default"):
            given["help"] += " (default %(default)s)"
        parser.add_argument(f"--{name}", **given)


def add_common(parser: argparse.ArgumentParser, *, out: Path) -> None:
    """Declare what every bench takes; a quick run saves under the name of the committed file in ``build/bench``."""
    where = f"results file (default {short(out)}, --quick: {short(BUILT / out.name)})"
    parser.add_argument("--out", type=Path, metavar="FILE", help=where)
    _declare(parser, "common")
    parser.set_defaults(committed_out=out)


def out_of(arguments: argparse.Namespace) -> Path:
    """The results file that was asked for."""
    committed = Path(arguments.committed_out)
    return Path(arguments.out) if arguments.out else BUILT / committed.name if arguments.quick else committed


def opened(arguments: argparse.Namespace, bench: str, settings: Mapping[str, Any], *, device: str = "cpu") -> Results:
    """The results to add rows to: every change of the settings makes other ones. Sets torch's threads."""
    import torch

    from bench.results import Results

    torch.set_num_threads(arguments.threads)
    common = {name: getattr(arguments, name) for name in ("quick", "threads", "clock")}
    path = out_of(arguments)
    found = Results.open(path, bench, {**common, **settings}, fresh=arguments.fresh, device=device)
    if found.rows:
        say(f"going on with {short(path)}; rows so far: {len(found.rows)} (--fresh measures them anew)")
    return found


def finished(results: Results, findings: Sequence[Any], title: str) -> None:
    """Print what was found, save it, and write the report."""
    from bench.report.parts import findings_table

    console().print(findings_table(findings, f"{title}; {results.made_by}", grouped=True).terminal())
    results.finish(findings)
    report_on(results)


def report_on(results: Results) -> None:
    """Write the report of one file, never among committed ones; without matplotlib, say so: the file is saved."""
    try:
        need_matplotlib()
    except MissingDependencyError as error:
        return say(f"no report: {error}; then: cache-dit bench report")
    from bench.report.page import save_report

    folder = BUILT if results.path.parent.resolve() == COMMITTED else results.path.parent
    page = folder / f"{results.path.stem}.html"
    save_report(page, [results], whole=False)
    say(f"the report: {page}")


def console() -> Console:
    """Where tables go: wide where the output is no terminal."""
    from rich.console import Console

    found = Console()
    if not found.is_terminal:
        found.width = 160
    return found


def say(line: str) -> None:
    """Print a line as it is."""
    console().print(line, highlight=False, markup=False, soft_wrap=True)


def need_matplotlib() -> None:
    """Raise unless figures can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("a report needs matplotlib: pip install 'cache-dit[bench]'")


def short(path: Path) -> Path:
    """A path as it is typed in the repository's folder."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def some(known: Mapping[str, Any], patterns: Sequence[str], what: str) -> dict[str, Any]:
    """Those whose names fit; ``*`` is anything.

    Raises:
        UsageError: a pattern fits none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name.lower(), pattern.lower()) for name in known):
            raise UsageError(f"no {what} is called {pattern!r}; --list shows all")
    fits = {name for name in known for one in patterns if fnmatchcase(name.lower(), one.lower())}
    return {name: value for name, value in known.items() if name in fits}


# -- the benches


def _quality(arguments: argparse.Namespace) -> int:
    from bench.quality.choose import findings
    from bench.quality.drawing import Setup, held_out_pictures, search_pictures
    from bench.quality.methods import BUDGETS, CANDIDATES, methods
    from bench.quality.run import Plan, run

    if arguments.list:
        say("\n".join(f"{method.owner:<9} {name}" for name, method in methods().items()))
        return 0
    names = ("pictures", "seeds", "search_captions", "candidates", "steps", "budgets")
    asked = (2, 1, 1, 2, 6, (1.5, 2.0)) if arguments.quick else (64, 1, 6, CANDIDATES, 28, BUDGETS)
    settings = {name: getattr(arguments, name, None) or one for name, one in zip(names, asked, strict=True)}
    chosen = methods() if arguments.only is None else some(methods(), arguments.only, "method")
    if arguments.quick and arguments.only is None:  # no other environment is needed
        chosen = {name: method for name, method in chosen.items() if not method.version}
    try:
        held_out = held_out_pictures(settings["pictures"], settings["seeds"])
    except ValueError as error:
        raise UsageError(str(error)) from error
    results = opened(arguments, "quality", settings)
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(settings["steps"], arguments.clock, arguments.threads, Path(folder))
        pictures = search_pictures(settings["search_captions"]), held_out
        most = settings["candidates"], arguments.processes
        run(results, Plan(chosen, setup, tuple(settings["budgets"]), *pictures, *most))
    title = f"Quality: {settings['pictures']} pictures of {settings['steps']} steps"
    finished(results, findings(results.rows, results.settings), title)
    return 0


def _overhead(arguments: argparse.Namespace) -> int:
    from bench.cost import beside, ours

    names = dict.fromkeys((*ours.GROUPS, beside.PEERS))
    if arguments.list:
        say("\n".join(names))
        return 0
    chosen = names if arguments.only is None else some(names, arguments.only, "group")
    size = ours.QUICK if arguments.quick else ours.Extent()
    size = dataclasses.replace(size, clock=arguments.clock, runs=arguments.runs or size.runs)
    results = opened(arguments, "overhead", beside.settings_of(size))
    missing = beside.measure(results, size, arguments.threads, list(chosen))
    finished(results, beside.findings_of(results.rows), f"FLUX, {beside.described(results.settings['model'])}")
    for version, why in missing.items():
        say(f"cache-dit {version} was not measured: {why.splitlines()[0]}")
    return 0


def _scaling(arguments: argparse.Namespace) -> int:
    import torch

    from bench.cost import scaling
    from bench.results import findings_of
    from bench.timer import clock_for

    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here: pass --device cpu")
    runs = 1 if arguments.quick else arguments.runs
    results = opened(arguments, "scaling", {"device": str(device), "runs": runs}, device=str(device))
    clock = clock_for(device, arguments.clock)
    scaling.run(scaling.points(quick=arguments.quick), results, runs=runs, device=device, clock=clock)
    finished(results, findings_of(results.rows.values()), f"{results.machine['device']}, {clock.name} time")
    return 0


def _gpu(arguments: argparse.Namespace) -> int:
    from bench.cost import gpu
    from bench.results import findings_of

    size = gpu.QUICK if arguments.quick else gpu.Amount()
    stage = gpu.opened(arguments.device, size)
    dtype = str(stage.dtype).removeprefix("torch.")
    settings = {"device": str(stage.device), "dtype": dtype, **dataclasses.asdict(size)}
    results = opened(arguments, "gpu", settings, device=str(stage.device))
    gpu.run(stage, results, arguments.minutes, only=arguments.only, say=say)
    finished(results, findings_of(results.rows.values()), f"{results.machine['device']}, {dtype}")
    failed = [key for key, row in results.rows.items() if "error" in row]
    if failed:
        say(f"failed: {', '.join(failed)}; run again with more minutes to try these anew")
    return 1 if failed else 0


# -- results


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fresh", type=Path, metavar="FRESH", help="results file of a run just made")
    what = "what it was before (default: bench/results)"
    parser.add_argument("committed", type=Path, metavar="COMMITTED", nargs="?", help=what)
    small = "changes up to this share are not told (default %(default)s)"
    parser.add_argument("--tolerance", type=_share, default=0.02, metavar="SHARE", help=small)
    _declare(parser, "check")


def _check(arguments: argparse.Namespace) -> int:
    from bench.comparison import compare
    from bench.results import Results

    fresh = Results.load(arguments.fresh)
    committed = Results.load(arguments.committed or COMMITTED / f"{fresh.bench}.json")
    comparison = compare(fresh, committed, tolerance=arguments.tolerance)
    if arguments.json:
        print(json.dumps(comparison.as_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        if comparison.conditions:
            say("\n  ".join(["Not measured alike; committed there, fresh now:", *comparison.conditions]))
        for table in comparison.tables():
            console().print(table.terminal())
        say(f"{comparison.counted}\n{comparison.worse or 'nothing'} got worse")
    return 1 if arguments.strict and comparison.worse else 0


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to less than 1, got {text!r}")
    return share


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    out = BUILT / "report.html"
    where = f"where the results files lie (default {short(COMMITTED)})"
    parser.add_argument("folder", type=Path, nargs="?", default=COMMITTED, metavar="FOLDER", help=where)
    parser.add_argument("--out", type=Path, default=out, metavar="FILE", help=f"the page (default {short(out)})")
    _declare(parser, "report")


def _report(arguments: argparse.Namespace) -> int:
    need_matplotlib()
    from bench.report.page import read_folder, save_report

    if not arguments.folder.is_dir():
        raise UsageError(f"argument FOLDER: {arguments.folder} is no folder: pass one with results files")
    results, unread = read_folder(arguments.folder)
    for line in unread:
        say(f"left out: {line}")
    path = arguments.out.resolve()
    save_report(path, results, unread=unread)
    say(f"the report: {path}")
    if arguments.open:
        import webbrowser

        webbrowser.open(path.as_uri())
    return 0


def _bench(name: str, text: str, run: Any) -> Command:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_common(parser, out=COMMITTED / f"{name}.json")
        _declare(parser, name)

    return Command(name, text, add_arguments, run)


_CHECK = "Compare a fresh run with a committed one: what moved beyond the noise."
_COST = "what the cache costs: time, live state and host reads, beside all peers"
_QUALITY = "how close pictures are to the uncached ones at which speed-up, beside all peers"
COMMANDS: tuple[Command, ...] = (
    Command("check", _CHECK, _check_arguments, _check),
    _bench("gpu", "cost and gain on a CUDA GPU: full-sized transformers with random weights", _gpu),
    _bench("overhead", _COST, _overhead),
    _bench("quality", _QUALITY, _quality),
    Command("report", "Make one page of all results of a folder.", _report_arguments, _report),
    _bench("scaling", "cost of cached and full steps as tokens, depth, width and batch grow", _scaling),
)
