"""The core: a step when nothing is cached, and the speed-up when half of the steps are."""

from bench.common import NEVER, pairs_of, static, twin
from bench.findings import Finding, ratio
from bench.overhead.common import Size, cached, half_mask, interleaved
from bench.overhead.speedups import speedups
from bench.peers.cost import make_inputs, make_transformer, with_blocks


def core(size: Size) -> list[Finding]:
    return [*nothing_cached(size), *half_cached(size)]


def nothing_cached(size: Size) -> list[Finding]:
    """A step with the wrapper over a step without, where no step is ever skipped."""
    model = make_transformer(size)
    models = {
        "bare": model,
        "control": twin(model),
        "never": cached(model, size, Fn_compute_blocks=1, residual_diff_threshold=0.0),
        "measuring": cached(model, size, Fn_compute_blocks=1, residual_diff_threshold=NEVER, order=1),
    }
    times = interleaved(models, make_inputs(size), size.runs, "nothing cached", size.clock)
    titles = {
        "never": ("wrapped ÷ bare, threshold 0", 1.01),
        "measuring": ("wrapped ÷ bare, every step measured, none skipped, Taylor 1", None),
        "control": ("bare ÷ bare: how far the machine lets one see", None),
    }
    return [ratio(title, pairs_of(times, name, "bare"), most=most) for name, (title, most) in titles.items()]


def half_cached(size: Size) -> list[Finding]:
    """The speed-up of a static plan that skips every other step."""
    model = make_transformer(size)
    findings = []
    for front in (0, 1):
        wrapped = cached(model, size, order=1, Fn_compute_blocks=front, **static(half_mask(size)))
        models = {"bare": model, "cached": wrapped, "rest": with_blocks(model, range(front))}
        times = interleaved(models, make_inputs(size), size.runs, f"half of the steps skipped, Fn={front}", size.clock)
        findings += speedups(f"Fn={front}", times, wrapped, least=0.97)
    return findings
