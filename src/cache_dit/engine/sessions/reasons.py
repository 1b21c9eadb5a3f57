"""Why a request with the cache on had no cached step, and what of it was not as asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cache_dit.config.base import as_number
from cache_dit.config.cache import BasicCacheConfig
from cache_dit.config.masks import PresetMask
from cache_dit.engine.forward.branch_cache import BranchCache
from cache_dit.engine.policies.reasons import held_back, no_hit_code, refusal, why_no_hit
from cache_dit.engine.sessions.opening import fitted
from cache_dit.engine.sessions.session import Session

NEVER_CALLED = (
    "The transformer was not called since enable_cache: call the module, as transformer.forward(…), or a wrapper that "
    "torch.compile made before, goes round the cache."
)
"""Why nothing was cached on a transformer that has made no step."""

NO_STEP = "The transformer was called only in a way that is no step of a run, such as to take up a reference."
"""The same, where all calls were such as its record lets pass."""


_WORTHWHILE = 1.2
"""A request whose ideal speed-up is less is told in the log."""


class NoHit(NamedTuple):
    """Why a request had no cached step.

    Args:
        code: the reason's code, by which the log tells one from another.
        text: one sentence.
        asked: whether that is what was asked for, by a threshold of 0.
    """

    code: str
    text: str
    asked: bool = False


def no_hit(session: Session, caches: Iterable[BranchCache]) -> NoHit | None:
    """Why a request with the cache on had no cached step; None when it had one, or had no step."""
    caches = list(caches)
    if session.note is not None and not caches:
        config = session.options[0].cache
        text = refusal(session.note, config)
        asked = as_number("residual_diff_threshold", config.residual_diff_threshold) <= 0 and not config.is_static
        return None if text is None else NoHit(session.note, text, asked)
    policies = [(policy, cache.options.cache) for cache in caches for policy in cache.policies().values()]
    if any(policy.cached_steps for policy, _ in policies):
        return None
    found = []
    for policy, config in policies:
        code, text = no_hit_code(policy.records), why_no_hit(policy.records, config)
        if code is not None and text is not None:
            found.append(NoHit(code, text, asked=policy.threshold <= 0 and not policy.static))
    return min(found, key=lambda one: one.asked, default=None)


def slow(session: Session) -> tuple[str, str] | None:
    """Why a request that has made all its steps was hardly faster: codes, and sentences with its ideal speed-up.

    None: it was faster, it was given up between two steps, or masks and plans asked for that.
    """
    if all(options.cache.is_static for options in session.options):
        return None
    caches = list(session.caches.items())
    executed, possible = (sum(getattr(cache, of) for _, cache in caches) for of in ("executed", "possible"))
    steps = session.num_inference_steps
    if possible >= _WORTHWHILE * executed or (steps is not None and session.clock.step < steps - 1):
        return None
    hints: dict[str, str] = {}
    for index, options in enumerate(session.options):
        own = [cache for (_, _, chain), cache in caches if chain == index]
        records = [record for cache in own for policy in cache.policies().values() for record in policy.records]
        blocks = len(own[0].chain.blocks) if own else 0
        hints |= held_back(records, options.cache, blocks)
    told = " ".join(hints.values())
    return ", ".join(hints), f"the ideal speed-up was {possible / executed:.2f}: {told}"


def misfit(session: Session, config: BasicCacheConfig) -> str | None:
    """What to say of a mask of another length than the run; None: it fits, or nobody can know."""
    mask, steps = config.steps_computation_mask, session.length
    if mask is None or steps is None or isinstance(mask, PresetMask) or fitted(config, steps) is config:
        return None
    what = "it is cut, and the last step computes" if len(mask) > steps else "the steps past its end compute"
    return (
        f"steps_computation_mask has {len(mask)} entries and the run has {steps} steps: {what}; pass a mask of {steps} "
        f"entries, see cache_dit.steps_mask"
    )
