"""The public surface: `__all__`, docstrings, version, and what an import costs."""

import enum
import inspect
import json
import re
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cache_dit

ROOT = Path(__file__).parent.parent


def run_python(code: str) -> str:
    """Standard output of `code` in a fresh interpreter, where warnings are errors as they are here."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def own_docstring(member: Any) -> str:
    """The docstring that was written for `member`, not one inherited or generated."""
    if not inspect.isclass(member):
        return (getattr(member, "__doc__", None) or "").strip()
    text = (vars(member).get("__doc__") or "").strip()
    generated_by_dataclass = text.startswith(f"{member.__name__}(")
    generated_by_enum = issubclass(member, enum.Enum) and text in {
        "An enumeration.",
        "Create a collection of name/value pairs.",
    }
    return "" if generated_by_dataclass or generated_by_enum else text


def public_members(owner: type) -> list[tuple[str, Any]]:
    """The public methods and properties that a class of this package defines itself."""
    return [
        (name, member)
        for name, member in vars(owner).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod))
    ]


def test_every_name_in_all_exists():
    missing = [name for name in cache_dit.__all__ if not hasattr(cache_dit, name)]
    assert missing == []


def test_all_is_free_of_duplicates():
    assert len(cache_dit.__all__) == len(set(cache_dit.__all__))


def test_every_public_attribute_is_in_all():
    attributes = {
        name
        for name in dir(cache_dit)
        if not name.startswith("_") and not isinstance(getattr(cache_dit, name), ModuleType)
    }
    assert attributes - set(cache_dit.__all__) == set()


def test_star_import_gives_exactly_all():
    namespace: dict[str, Any] = {}
    exec("from cache_dit import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(cache_dit.__all__)


@pytest.mark.parametrize("name", cache_dit.__all__)
def test_every_public_class_and_function_has_a_docstring(name: str):
    member = getattr(cache_dit, name, None)
    if not inspect.isclass(member) and not inspect.isroutine(member):
        return  # a constant, an enum member or a type alias: its name and its module's text say what it is
    assert own_docstring(member), f"cache_dit.{name} has no docstring of its own"


@pytest.mark.parametrize(
    "name", [name for name in cache_dit.__all__ if inspect.isclass(getattr(cache_dit, name, None))]
)
def test_every_public_method_of_a_public_class_has_a_docstring(name: str):
    bare = [member for member, value in public_members(getattr(cache_dit, name)) if not inspect.getdoc(value)]
    assert bare == []


def test_the_version_is_the_one_installed():
    assert cache_dit.__version__ == metadata.version("cache-dit")


def test_the_changelog_begins_with_this_version():
    newest = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == cache_dit.__version__


def test_the_package_says_that_it_is_typed():
    assert Path(cache_dit.__file__).with_name("py.typed").is_file()


def test_a_cache_asks_for_torch_and_diffusers_alone():
    # What diffusers imports for its own sake (PIL, yaml by way of huggingface_hub) is not counted: only import
    # statements that stand in this package and run while its names are imported. Planning computes with numpy, and
    # `cache_dit.caching`, where PatchFunctor is, has it too.
    seen = json.loads(
        run_python(
            """
            import builtins, json, sys

            plain_import, seen = builtins.__import__, set()

            def noting_import(name, globals=None, locals=None, fromlist=(), level=0):
                if level == 0 and ((globals or {}).get("__name__") or "").partition(".")[0] == "cache_dit":
                    seen.add(name.partition(".")[0])
                return plain_import(name, globals, locals, fromlist, level)

            builtins.__import__ = noting_import
            import cache_dit
            for name in cache_dit.__all__:
                if name not in ("PatchFunctor", "calibrate", "plan"):
                    getattr(cache_dit, name)
            print(json.dumps(sorted(seen - sys.stdlib_module_names)))
            """
        )
    )
    assert "torch" in seen
    assert set(seen) <= {"cache_dit", "torch", "diffusers"}


def test_import_works_without_what_only_some_features_need():
    # None in sys.modules makes an import fail as if nothing were installed. PIL, yaml and tqdm cannot be blocked,
    # because diffusers itself needs them; the test above shows that this package does not ask for them.
    output = run_python(
        """
        import sys

        for name in ("accelerate", "peft", "rich", "torchao", "transformers"):
            sys.modules[name] = None
        import cache_dit
        print([name for name in cache_dit.__all__ if not hasattr(cache_dit, name)])
        """
    )
    assert output.strip() == "[]"


def test_what_puts_a_cache_on_leaves_the_model_library_unread():
    # `from diffusers import DiffusionPipeline` or `ModelMixin` reads transformers, and doubles the time of an import.
    output = run_python("import sys, cache_dit; cache_dit.enable_cache; print('transformers' in sys.modules)")
    assert output.strip() == "False"


def test_the_citation_names_this_version():
    named = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert named is not None
    assert named[1] == cache_dit.__version__
