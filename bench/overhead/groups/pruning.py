"""DBPrune: what deciding block by block costs, what half of the blocks save, and how often the host waits."""

from bench.common import ALWAYS, NEVER, pairs_of
from bench.findings import Finding, at_most, ratio
from bench.overhead.common import Size, cached, interleaved
from bench.overhead.speedups import live_features, speedups
from bench.peers.cost import make_inputs, make_transformer, with_blocks
from bench.reads import reads
from cache_dit import DBPruneConfig

DECISIONS = ("block", "previous")


def pruning(size: Size) -> list[Finding]:
    return [*nothing_pruned(size), *half_pruned(size), *live_state(size)]


def nothing_pruned(size: Size) -> list[Finding]:
    """Every block measured at every step, none skipped."""
    model, inputs = make_transformer(size), make_inputs(size)
    options = {"config": DBPruneConfig, "Fn_compute_blocks": 1, "residual_diff_threshold": NEVER}
    models = {decision: cached(model, size, prune_decision=decision, **options) for decision in DECISIONS}
    times = interleaved({"bare": model, **models}, inputs, size.runs, "nothing pruned", size.clock)
    findings = []
    for decision in DECISIONS:
        title = f"wrapped ÷ bare, nothing pruned, decided by {decision}"
        findings.append(ratio(title, pairs_of(times, decision, "bare"), most=1.01 if decision == "previous" else None))
    for decision, most in (("block", size.blocks - 1), ("previous", 1)):
        name = f"DBPrune by {decision}, {size.blocks - 1} blocks to decide"
        findings.append(reads(name, models[decision], inputs, most))
    return findings


def half_pruned(size: Size) -> list[Finding]:
    """Every other block is measured and skipped, whenever it may be."""
    model, inputs = make_transformer(size), make_inputs(size)
    kept = list(range(0, size.blocks, 2))
    findings = []
    for decision in DECISIONS:
        wrapped = cached(
            model,
            size,
            config=DBPruneConfig,
            Fn_compute_blocks=1,
            residual_diff_threshold=ALWAYS,
            non_prune_block_ids=kept,
            prune_decision=decision,
        )
        models = {"bare": model, "cached": wrapped, "rest": with_blocks(model, kept)}
        times = interleaved(models, inputs, size.runs, f"half of the blocks pruned, by {decision}", size.clock)
        findings += speedups(f"half of the blocks pruned, by {decision}", times, wrapped, least=0.97)
        name = f"DBPrune by {decision}, {size.blocks - len(kept)} blocks to decide"
        findings.append(reads(name, wrapped, inputs, 1 if decision == "previous" else size.blocks - len(kept)))
    return findings


def live_state(size: Size) -> list[Finding]:
    """Features held for each block that can be skipped: its snapshots, and its input where it is measured."""
    model, inputs = make_transformer(size), make_inputs(size)
    findings = []
    for name, order, most in (("reuse", None, 2), ("Taylor 1", 1, 3)):
        options = {"Fn_compute_blocks": 1, "residual_diff_threshold": NEVER, "order": order}
        wrapped = cached(model, size, config=DBPruneConfig, **options)
        for arguments in inputs:
            wrapped(**arguments)
        held = live_features(wrapped, size) / (size.blocks - 1)
        findings.append(at_most(f"live state of a block, DBPrune, {name}", held, "features", most))
    return findings
