"""``cache-dit metrics``: measures what was asked for, and tells it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import cache_dit.metrics
from cache_dit.cli.arguments import UsageError
from cache_dit.cli.metrics.arguments import MEASURES, Comparison, Kind, chosen_metrics, comparisons
from cache_dit.cli.metrics.perf_log import Perf, columns, read_perf_log
from cache_dit.cli.metrics.prepared import Compute, prepared
from cache_dit.cli.metrics.results import Result, as_csv, as_json, markdown, summary
from cache_dit.errors import CacheDitError, MissingDependencyError, MissingModelError
from cache_dit.metrics.verbosity import logger


def run(arguments: argparse.Namespace) -> int:
    """Measure everything, tell each result as it comes, and then what else was asked for."""
    found = comparisons(arguments)
    metrics = chosen_metrics(arguments, found)
    perf = _perf(arguments, found)
    for path in (arguments.json, arguments.csv):
        _check_writable(path)
    # What a program reads from the standard output has it to itself.
    out = sys.stderr if Path("-") in (arguments.json, arguments.csv) else sys.stdout
    with _settings(arguments):
        results, failed = _measured(metrics, found, perf, arguments.fid_batch_size, out)
    if arguments.summary and results:
        print(f"\n{summary(results)}", file=out)
    if arguments.gen_markdown_table and results:
        print(f"\n{markdown(results)}", file=out)
    _write(arguments.json, as_json(results, failed))
    _write(arguments.csv, as_csv(results))
    return 1 if failed else 0


def _measured(
    metrics: Sequence[str], found: Sequence[Comparison], perf: Perf, batch_size: int, out: TextIO
) -> tuple[list[Result], list[str]]:
    """All results, and a line for each that could not be had: one failure takes no other result away."""
    results, failed = [], []
    for metric in metrics:
        ready: dict[Kind, Compute | None] = {}
        for comparison in found:
            kind = comparison.kind
            if kind not in MEASURES[metric].kinds or ready.get(kind, True) is None:
                continue
            try:
                compute = ready.get(kind) or prepared(metric, kind, batch_size)
                ready[kind] = compute
                measured = compute(comparison.true, comparison.test)
            except (MissingDependencyError, MissingModelError) as error:
                ready[kind] = None  # nor will it be there for the next comparison
                failed.append(_complain(metric.upper(), error))
                continue
            except CacheDitError as error:
                failed.append(_complain(f"{' vs '.join(comparison.names)}, {metric.upper()}", error))
                continue
            result = Result.of(metric, comparison, measured)
            print(result.line, file=out, flush=True)
            results.append(dataclasses.replace(result, perf=perf.get(comparison.logged[1], {})))
    return results, failed


def _complain(what: str, error: CacheDitError) -> str:
    line = f"{what}: {' '.join(str(error).split())}"
    print(f"cache-dit metrics: error: {line}", file=sys.stderr, flush=True)
    return line


def _perf(arguments: argparse.Namespace, found: Sequence[Comparison]) -> Perf:
    """The columns that the log adds to each result, by the names in it; the reference is one, for speed-ups."""
    if arguments.perf_log is None:
        return {}
    tags = [*arguments.perf_tags, *arguments.extra_perf_tags]
    names = dict.fromkeys(name for comparison in found for name in reversed(comparison.logged))
    perf = read_perf_log(arguments.perf_log, tags, names)
    if not any(perf.values()):
        raise UsageError(
            f"the log {arguments.perf_log} has no line with the name of a configuration and one of the tags "
            f"{', '.join(tags)}; the configurations are {', '.join(names)}"
        )
    return columns(perf, tags, speedup=arguments.cal_speedup)


@contextlib.contextmanager
def _settings(arguments: argparse.Namespace) -> Iterator[None]:
    """What was asked for holds while measuring, and no longer."""
    before = (cache_dit.metrics.get_metrics_verbose(), cache_dit.metrics.get_psnr_type(), logger.level)
    handler = logging.StreamHandler(sys.stderr)
    cache_dit.metrics.set_metrics_verbose(arguments.enable_verbose)
    cache_dit.metrics.set_psnr_type(arguments.psnr_type)
    logger.addHandler(handler)
    if arguments.enable_verbose:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        cache_dit.metrics.set_metrics_verbose(before[0])
        cache_dit.metrics.set_psnr_type(before[1])
        logger.setLevel(before[2])


def _check_writable(path: Path | None) -> None:
    """Refuse a file that cannot be written before anything is measured."""
    if path is None or path == Path("-"):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def _write(path: Path | None, text: str) -> None:
    if path == Path("-"):
        sys.stdout.write(text)
    elif path is not None:
        path.write_text(text, encoding="utf-8")
