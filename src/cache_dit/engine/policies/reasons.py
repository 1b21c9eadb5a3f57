"""Why a step was computed or cached, and why a run had no hit, in words for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from cache_dit.config.base import as_number
from cache_dit.config.cache import BasicCacheConfig
from cache_dit.engine.policies.base import StepRecord, warmup_steps

_REFUSALS = {
    "last_block_not_called": "On a skipped step the last middle block was not called, so every step is computed.",
    "shape_changes_inside": "The blocks change their input's shape, so nothing can be predicted for them. Either two "
    "merged lists join their streams in between (pass join='eh' or 'he'), or forward_pattern or stream_names take one "
    "stream for the other (see cache_dit.inspect), or a block itself adds, drops or merges tokens, or returns another "
    "width, dtype or device (leave it out of blocks).",
    "gathers_inside": "A block that could be skipped gathers tokens from other devices, so every step is computed.",
    "no_middle": "Fn_compute_blocks={config.Fn_compute_blocks} and Bn_compute_blocks={config.Bn_compute_blocks} "
    "leave no block to skip; pass smaller ones.",
    "not_batch_first": "decision='sample' needs the samples along the first dimension of the hidden states; pass "
    "decision='mean'.",
    "prefetched": "This diffusers loads an offloaded group only from the one before it, which a cached step skips; "
    "update diffusers to 0.37 or later, or apply group offloading with use_stream=False.",
    "offload_groups": "DBPrune skips single blocks, and offloading loads several at once; apply group offloading with "
    "num_blocks_per_group=1.",
    "observed": "The run was watched to calibrate by, so every step was computed.",
    "second_cache": "Beside this cache a cache of diffusers is on as well, and works alone; call "
    "transformer.disable_cache().",
    "gradients": "While gradients are enabled every step is computed; run under torch.no_grad() or "
    "torch.inference_mode().",
    "not_called": "The model never called its blocks (it may call block.forward, which cannot be intercepted).",
}
"""The engine's codes for what rules out every hit, and the sentence for each; the first that occurs is told."""


_STEPS = {
    "off": "the request is too short to cache",
    "first": "nothing was computed before it",
    "warmup": "warm-up",
    "plan": "as planned",
    "mask": "as the mask says",
    "last": "the last step",
    "hit": "the diff is below the threshold",
    "threshold": "the diff is not below the threshold",
    "accumulated": "the diffs since the last computed step add up to too much",
    "max_cached": "max_cached_steps is reached",
    "max_continuous": "max_continuous_cached_steps is reached",
    "nonfinite": "the diff is NaN or infinite",
    "uncalibrated": "the policy_calibration has ended",
    "shape": "the shape, dtype or device of the hidden states changed",
    "conditioning": "what the pipeline conditions on changed",
    "required": "the model needs all of its blocks",
    "refreshed": "the cache was refreshed before it",
    "no_snapshot": "nothing was kept to predict it from",
    "not_measured": "the diff could not be measured",
}
"""The codes of a step's reason, and what each says of one step."""

_ADDING = ("teacache", "magcache", "easycache")
_STEPS_ADDED = {
    "hit": "what was skipped since the last computed step adds up to less than the threshold",
    "threshold": "what was skipped since the last computed step would add up to the threshold",
}
"""Of these, what the policies say that add up what skipped steps cost."""


def step_reason(record: StepRecord, config: BasicCacheConfig) -> str:
    """Why one step was computed or cached, in a few words; a policy's own code, which is not known here, as it is."""
    if record.why == "hit" and record.diff is None and not record.block_diffs:
        return "nothing is measured, and no limit is reached"
    if config.policy in _ADDING and record.why in _STEPS_ADDED:
        return _STEPS_ADDED[record.why]
    return _STEPS.get(record.why) or refusal(record.why, config) or record.why


def refusal(code: str, config: BasicCacheConfig) -> str | None:
    """The sentence for an engine's code that rules out every hit, e.g. `"no_middle"`; None: the code is no such one."""
    return _REFUSALS[code].format(config=config) if code in _REFUSALS else None


def no_hit_code(records: Sequence[StepRecord]) -> str | None:
    """The code of what ruled out every hit, else the most frequent one; None if a step was cached or none was run."""
    if not records or not all(record.computed for record in records):
        return None
    seen = Counter(record.why for record in records)
    if ruled_out := next((code for code in _REFUSALS if code in seen), None):
        return ruled_out
    reasons = [(why, count) for why, count in seen.most_common() if why not in ("first", "warmup", "last")]
    return reasons[0][0] if reasons else "warmup"


def why_no_hit(records: Sequence[StepRecord], config: BasicCacheConfig) -> str | None:
    """Why no step of a finished request was cached, in one sentence for people.

    Args:
        records: what happened to the steps of one branch and chain.
        config: the options that its policy had.

    Returns:
        What ruled out every hit, else the most frequent reason with its figures and what to pass instead; None if a
        step was cached or none was run.
    """
    why = no_hit_code(records)
    if why is None or why in _REFUSALS:
        return None if why is None else refusal(why, config)
    count = sum(record.why == why for record in records)
    if why == "threshold":
        return _above_threshold(records, config)
    return _sentences(config, len(records), count, _smallest(records)).get(
        why, f"{count} of {len(records)} steps were computed for the reason {why!r}."
    )


def _smallest(records: Sequence[StepRecord]) -> float:
    return min((r.diff for r in records if r.diff is not None and math.isfinite(r.diff)), default=math.nan)


def _above_threshold(records: Sequence[StepRecord], config: BasicCacheConfig) -> str:
    name, value = "residual_diff_threshold", config.residual_diff_threshold
    l1 = getattr(config.extra_cache_config, "l1_hidden_states_diff_threshold", None)
    if config.policy == "dbcache" and l1 is not None and as_number("l1_hidden_states_diff_threshold", l1) > 0:
        name, value = "l1_hidden_states_diff_threshold", l1
    threshold = as_number(name, value)
    if threshold <= 0:
        return f"{name}={threshold:g} caches nothing; pass a value above 0."
    if math.isnan(smallest := _smallest(records)):
        return f"{name}={threshold:g} is used up by the first step that could be cached; pass a larger one."
    if config.policy == "teacache":
        return (
            f"{name}={threshold:g} is not above what the smallest diff seen, {smallest:.3g}, costs after rescaling; "
            "pass a larger one."
        )
    return f"{name}={threshold:g} is not above the smallest diff seen, {smallest:.3g}; pass a larger one."


def _sentences(config: BasicCacheConfig, steps: int, count: int, smallest: float) -> dict[str, str]:
    warmup = warmup_steps(config)
    shorter = "pass a smaller max_warmup_steps."
    return {
        "off": f"The request is shorter than its warm-up of {warmup} steps plus 2; {shorter}",
        "warmup": f"The warm-up ({warmup} steps) leaves none of the {steps} steps to cache; {shorter}",
        "plan": f"The plan computes {count} of {steps} steps.",
        "mask": f"steps_computation_mask says 1, or has ended, at {count} of {steps} steps; pass one with zeros.",
        "max_cached": f"max_cached_steps={config.max_cached_steps} allows no cached step.",
        "max_continuous": f"max_continuous_cached_steps={config.max_continuous_cached_steps} allows no cached step.",
        "accumulated": f"The smallest diff seen, {smallest:.3g}, is above max_accumulated_residual_diff_threshold="
        f"{config.max_accumulated_residual_diff_threshold}.",
        "nonfinite": f"The diff was NaN or infinite in {count} of {steps} steps.",
        "uncalibrated": f"The policy_calibration ended before {count} of {steps} steps; make one with as many steps.",
        "shape": f"The shape, dtype or device of the hidden states changed before {count} of {steps} steps.",
        "conditioning": f"What the pipeline conditions on changed before {count} of {steps} steps; if it may change a "
        f"little at each, pass a larger conditioning_diff_threshold than {config.conditioning_diff_threshold}.",
        "required": f"The model needs all of its blocks in {count} of {steps} steps.",
        "refreshed": f"The cache was refreshed before {count} of {steps} steps, and a refreshed cache is empty.",
        "no_snapshot": f"Nothing was kept to predict {count} of {steps} steps from.",
        "not_measured": f"The diff could not be measured in {count} of {steps} steps.",
    }


#: Of reason codes that an option makes: the option, and what to pass for it.
_OPTIONS = {
    "threshold": ("residual_diff_threshold", "a larger one"),
    "max_cached": ("max_cached_steps", "a larger one"),
    "max_continuous": ("max_continuous_cached_steps", "a larger one"),
    "accumulated": ("max_accumulated_residual_diff_threshold", "a larger one"),
    "mask": ("steps_computation_mask", "one with more zeros"),
}
#: Codes that every run has, or that are as asked for.
_EXPECTED = {*_OPTIONS, "first", "warmup", "plan", "last", "hit"}


def held_back(records: Sequence[StepRecord], config: BasicCacheConfig, blocks: int) -> dict[str, str]:
    """What made steps, or blocks of cached steps, run: by a code, a sentence that says what to pass instead.

    Args:
        records: what happened to the steps of all branches.
        config: the options that their policies had.
        blocks: the number of blocks of the chain.
    """
    hints: dict[str, str] = {}
    computed = {record.why: [one for one in records if one.computed and one.why == record.why] for record in records}
    for why, found in computed.items():
        made = f"computed {len(found)} of {len(records)} steps"
        if why in _OPTIONS and found and not config.is_static:
            compared = why == "threshold" and config.policy not in _ADDING
            diffs = [record.diff for record in found if compared and record.diff is not None]
            at = f", their diffs begin at {min(diffs):.3g}" if diffs else ""
            option, then = _OPTIONS[why]
            hints[why] = f"{option}={getattr(config, option)} {made}{at}: pass {then}."
        elif why not in _EXPECTED and found:
            hints[why] = f"{len(found)} of {len(records)} steps were computed: {step_reason(found[0], config)}."
    warm = sum(len(computed.get(why, ())) for why in ("first", "warmup"))
    if config.max_warmup_steps > 1 and warm > len(records) / 4:
        made = f"computed {warm} of {len(records)} steps"
        hints["warmup"] = f"max_warmup_steps={config.max_warmup_steps} {made}: pass a smaller one."
    always = config.Fn_compute_blocks + config.Bn_compute_blocks
    if always > max(1, blocks / 4):
        names = "Fn_compute_blocks or Bn_compute_blocks" if config.Bn_compute_blocks else "Fn_compute_blocks"
        hints["always"] = f"{always} of {blocks} blocks run in cached steps too: pass a smaller {names}."
    return hints
