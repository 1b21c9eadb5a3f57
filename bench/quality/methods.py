"""The table of methods. One more is one more entry in one of its files."""

from functools import cache

from bench.quality.method import Method


@cache
def methods() -> dict[str, Method]:
    """All methods by name: ours, then those that need no cache, then peers' in this process and in their own."""
    from bench.quality.blackbox import BLACK_BOXES
    from bench.quality.diffusers_caches import DIFFUSERS_CACHES
    from bench.quality.ours import BASELINES, OURS
    from bench.quality.plans import PLANS

    listed: list[Method] = [*PLANS, *OURS, *BASELINES, *DIFFUSERS_CACHES, *BLACK_BOXES]
    table = {method.name: method for method in listed}
    if len(table) != len(listed):
        raise ValueError(f"two methods have one name: {sorted(method.name for method in listed)}")
    return table
