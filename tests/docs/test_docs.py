"""What the documentation shows works: the blocks of each page run, one after the other, as a reader would run them."""

from __future__ import annotations

import contextlib
import io
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import cache_dit
from bench.commands import COMMANDS as BENCHES
from cache_dit.models import record
from tests.docs.pages import DOCS, PAGES, Block, blocks, setup_name, text
from tests.docs.setups import SETUPS

ROOT = DOCS.parent

#: Blocks that cannot run in a test, by page; everything else does.
NOT_RUN = {"quick_start.md": 1, "cache/memory.md": 1}

#: A page that makes real plans takes as long as a quarter of all others.
SLOW = {"plan.md"}

RUN = [
    pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page
    for page in PAGES
    if blocks(page) and setup_name(page) != "stand_ins"
]

_NUMBER = re.compile(r"-?\d+\.\d+")


def run(page: str) -> None:
    """Run a page's blocks in one namespace, and compare what they print with what the page says they do."""
    setup = setup_name(page)
    namespace: dict[str, Any] = {"__name__": "page"} if setup is None else {"__name__": "page", **SETUPS[setup]()}
    printed = ""
    for block in blocks(page):
        if block.not_run:
            continue
        if block.language == "python":
            printed = run_python(block, namespace)
        elif block.language == "yaml":
            load_yaml(block)
        elif block.mark == "output":
            assert same_text(printed, block.code), f"{block.place} says\n{block.code}\nbut printed was\n{printed}"


def run_python(block: Block, namespace: dict[str, Any]) -> str:
    """Run a block; what it printed."""
    printed = io.StringIO()
    code = compile("\n" * (block.line - 1) + block.code, str(DOCS / block.page), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def load_yaml(block: Block) -> None:
    """Write a block's file, so that the Python blocks below it can name it, and load it as a configuration."""
    assert block.title, f'{block.place} has no title: a YAML block needs a file\'s name, title="cache.yaml"'
    assert isinstance(yaml.safe_load(block.code), dict)
    path = Path(block.title)
    path.write_text(block.code, encoding="utf-8")
    cache_dit.load_configs(str(path))


def same_text(printed: str, shown: str) -> bool:
    """Whether both say the same, where numbers with a decimal point may differ by 5 %, as they do between machines."""
    if _NUMBER.sub("#", printed).split() != _NUMBER.sub("#", shown).split():
        return False
    pairs = zip(_NUMBER.findall(printed), _NUMBER.findall(shown), strict=True)
    return all(float(one) == pytest.approx(float(other), rel=0.05, abs=0.002) for one, other in pairs)


@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "_records", dict(record._records))  # a page may register a model of its own
    run(page)


def test_the_blocks_that_are_not_run_are_those_that_are_listed() -> None:
    marked = {page: sum(block.not_run for block in blocks(page)) for page in PAGES}
    assert {page: count for page, count in marked.items() if count} == NOT_RUN


def test_every_mark_is_known_and_every_block_has_a_language() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.mark == "" or block.mark.startswith(("not run: ", "setup: ")) or block.mark == "output"
            assert block.language in ("python", "yaml", "bash", "text"), block.place
        assert len(re.findall(r"^```", text(page), re.M)) == 2 * len(blocks(page)), page


def known_command(command: str) -> bool:
    """Whether a command that is shown is a target of the Makefile, or one of ours."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    known = [rf"make ({'|'.join(targets)})", r"pip install \S+", r"\.venv/bin/cache-dit demo .*"]
    known += [r"python -m tools\.docs\.figures.*", r"cache-dit plan .*", "cache-dit env"]
    known += [rf"cache-dit bench {command.name}(?: .*)?" for command in BENCHES]
    return any(re.fullmatch(pattern, command) for pattern in known)


def test_commands_shown_are_targets_of_the_makefile_or_known() -> None:
    for page in PAGES:
        for block in blocks(page):
            for line in block.code.splitlines() if block.language == "bash" else []:
                assert known_command(line.split("#")[0].strip()), f"{block.place}: {line}"


@pytest.mark.parametrize("page", [page for page in PAGES if ":::" in text(page)])
def test_what_the_reference_takes_from_the_code_is_where_it_says(page: str) -> None:
    wrong = []
    for path in re.findall(r"^::: ([\w.]+)$", text(page), re.M):
        try:
            pkgutil.resolve_name(path)
        except (ImportError, AttributeError):
            wrong.append(path)
    assert not wrong, f"docs/{page}: nothing is at {', '.join(wrong)}"


def test_the_reference_names_everything_public_once() -> None:
    reference = "\n".join(text(page) for page in PAGES if page.startswith("api/"))
    listed = re.findall(r"^::: (?:[\w.]+\.)?(\w+)$", reference, re.M) + re.findall(r"^\| `(\w+)` \|", reference, re.M)
    public = [name for name in cache_dit.__all__ if not name.startswith("__")]
    missing = [name for name in public if name not in listed]
    assert not missing, f"not in docs/api: {', '.join(missing)}"
    assert len(listed) == len(set(listed))
