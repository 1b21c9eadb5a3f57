"""How far ``enable_cache`` walks: counted, so that no machine's load changes it."""

from __future__ import annotations

import cache_dit
from tests.kit.tiny_flux import tiny_pipeline
from tools.walk import Walk, walk_of


def test_a_walk_is_counted_inside_the_package_alone() -> None:
    walk = walk_of(cache_dit.DBCacheConfig(max_warmup_steps=4).strify)
    assert walk.files == ["config/cache.py", "config/base.py"]
    assert walk.count("strify") == walk.count("_tags") == 1
    assert Walk([("a", "f"), ("a", "g"), ("b", "f"), ("a", "f")]).changes == 2


def test_enabling_checks_each_configuration_once_and_walks_straight() -> None:
    pipe = tiny_pipeline()
    options = (
        cache_dit.DBCacheConfig(residual_diff_threshold=0.24, Fn_compute_blocks=1),
        cache_dit.TaylorSeerCalibratorConfig(),
    )
    enable_cache = cache_dit.enable_cache
    enable_cache(pipe, *options)  # what is imported late, and classes that are made once, are no part of it
    cache_dit.disable_cache(pipe)
    walk = walk_of(lambda: enable_cache(pipe, *options))
    assert walk.count("validate") == 2  # that of the cache, and that of the calibrator
    assert walk.changes <= 60
    assert len(walk.files) <= 26
