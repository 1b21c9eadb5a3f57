"""The reference's import paths: servers and scripts find every name where they look for it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap

import pytest

from cache_dit import compat
from tests.kit.reference import NOT_YET, PATHS, found, not_yet


def run_python(code: str) -> str:
    """Standard output of ``code`` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("path", [path for path in PATHS if not not_yet(path)])
def test_a_path_of_the_reference_leads_to_something(path: str):
    assert found(path) is not None


@pytest.mark.parametrize("entry", NOT_YET)
def test_what_has_arrived_is_off_the_list(entry: str):
    listed = [path for path in PATHS if path == entry or path.startswith(f"{entry}.")]
    assert listed, f"the reference has no {entry}"
    arrived = [path for path in listed if found(path) is not None]
    assert arrived == [], "this is there: take it off NOT_YET"


@pytest.mark.parametrize("path", compat.PATHS)
def test_each_row_gives_what_it_names(path: str):
    module = importlib.import_module(f"cache_dit.{path}")
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert set(module.__all__) <= set(dir(module))
    assert not hasattr(module, "no_such_name")


def test_a_module_that_stands_nowhere_is_not_found():
    for path in ("cache_dit.caching.no_such", "cache_dit.caching.cache_blocks.no_such", "cache_dit.no_such"):
        with pytest.raises(ModuleNotFoundError, match="no_such"):
            importlib.import_module(path)


def test_the_same_thing_stands_at_all_its_paths():
    from cache_dit.caching.cache_contexts.cache_manager import CachedContextManager
    from cache_dit.caching.manager import CachedContextManager as Ours

    assert CachedContextManager is Ours is found("cache_dit.caching.CachedContextManager")
    assert found("cache_dit.distributed.ParallelismConfig") is found("cache_dit.parallelism.config.ParallelismConfig")


def test_an_import_path_loads_only_what_a_taken_name_needs():
    loaded = run_python(
        """
        import json, sys
        from cache_dit.caching import forward_pattern, utils
        from cache_dit.caching.cache_types import CacheType
        from cache_dit.distributed.config import ParallelismConfig
        print(json.dumps(sorted({"cache_dit.caching.blocks", "cache_dit.caching.manager"} & set(sys.modules))))
        """
    )
    assert json.loads(loaded) == []


@pytest.mark.parametrize("first", ["import cache_dit; cache_dit.summary", "import cache_dit.summary"])
def test_summary_is_a_function_and_a_module_in_both_orders_of_import(first: str):
    output = run_python(
        f"""
        {first}
        import cache_dit
        cache_dit.summary(None, logging=False)
        from cache_dit import summary
        from cache_dit.summary import CacheStats, strify
        from cache_dit.summary import summary as function
        import cache_dit.summary
        for called in (summary, cache_dit.summary, function):
            print(called(None, logging=False) == [CacheStats()] == [cache_dit.CacheStats()])
        """
    )
    assert output == "\n".join(["True"] * 3)
