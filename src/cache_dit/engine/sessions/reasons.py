"""Why a request with the cache on had no cached step."""

from __future__ import annotations

from collections.abc import Iterable

from cache_dit.engine.forward.branch_cache import BranchCache
from cache_dit.engine.policies.reasons import refusal, why_no_hit
from cache_dit.engine.sessions.session import Session


def no_hit_reason(session: Session, caches: Iterable[BranchCache]) -> str | None:
    """Why a request with the cache on had no cached step, in one sentence; None when it had one, or had no step."""
    caches = list(caches)
    if session.note is not None and not caches:
        return refusal(session.note, session.options[0].cache)
    policies = [(policy, cache.options.cache) for cache in caches for policy in cache.policies().values()]
    if not policies or any(policy.cached_steps for policy, _ in policies):
        return None
    return next((reason for policy, cache in policies if (reason := why_no_hit(policy.records, cache))), None)
