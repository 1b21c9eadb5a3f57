"""Runs the groups: each of ours is a row, and each measurement beside peers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track

from bench.common import quiet
from bench.findings import Finding
from bench.overhead import peers
from bench.overhead.common import Size, keeping_samples
from bench.overhead.contenders import COUNTED, MEASURED, MODELS, QUICK_COUNTED, QUICK_MODELS, Case, Model, cases
from bench.overhead.groups import GROUPS
from bench.overhead.peer_findings import peer_findings

if TYPE_CHECKING:
    from bench.results import Results

#: The way to compile that a quick run tries.
WHOLE = "whole model"
#: What ``--only`` knows: our own groups, and all that is measured beside peers.
PEERS = "peers"
NAMES = (*GROUPS, PEERS)


def models_of(size: Size) -> dict[str, Model]:
    """The models that peers are timed on."""
    return QUICK_MODELS if size.quick else MODELS


def settings_of(size: Size) -> dict[str, Any]:
    """What makes the measurements what they are, beside what every bench saves."""
    own = {name: value for name, value in asdict(size).items() if name not in ("clock", "quick")}
    models = {name: {**asdict(model.size), "runs": model.runs} for name, model in models_of(size).items()}
    return {"model": own, "peers": models}


def measure(
    results: Results, size: Size, groups: Sequence[str], *, threads: int, shown: bool = False
) -> dict[str, str]:
    """Add the rows that are not there yet.

    Args:
        results: what is there.
        size: the model of our own groups.
        groups: some of ``NAMES``.
        threads: that torch computes with.
        shown: whether to show progress.

    Returns:
        The peers that are missing, and why.
    """
    with quiet("cache_dit", "torch._dynamo"):  # that nothing was skipped is the point here
        for name in groups:
            if name in GROUPS:
                results.row(f"group/{name}", lambda name=name: _group(name, size))
        if PEERS not in groups:
            return {}
        counted = QUICK_COUNTED if size.quick else COUNTED
        every = cases(models_of(size), counted, clock=size.clock, threads=threads)
        wanted = [case for case in every if not size.quick or _is_quick(case)]
        watched: Iterable[Case] = track(wanted, "beside peers", transient=True, disable=not shown)
        return peers.measure(results, watched, threads)


def _is_quick(case: Case) -> bool:
    """Whether a quick run makes it: it needs no other environment, and compiles in one way."""
    return case.version is None and case.arguments.get("way", WHOLE) == WHOLE and case.what != f"{MEASURED}, {WHOLE}"


@torch.inference_mode()
def _group(name: str, size: Size) -> dict[str, Any]:
    start = time.perf_counter()
    with keeping_samples() as samples:
        findings = [asdict(replace(finding, group=name)) for finding in GROUPS[name](size)]
    return {"seconds": round(time.perf_counter() - start, 1), "findings": findings, "samples": samples}


def findings_of(rows: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """What follows from the rows, whichever are there."""
    ours = [Finding(**one) for name in GROUPS for one in rows.get(f"group/{name}", {"findings": []})["findings"]]
    return [*ours, *peer_findings(rows)]
