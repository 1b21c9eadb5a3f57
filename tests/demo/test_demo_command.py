"""`cache-dit demo` from end to end, on a small random model."""

import html.parser
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from cache_dit.cli import main
from cache_dit.demo import load_pipeline, plans
from tests.demo.plans import even_plan

PROMPTS = ("noto emoji of owl", 'a <b>"rocket"</b> & more')
STEPS = 8
NAMES = ["no cache", "plan 2×", "plan 4×", "even mask", "preset mask", "threshold", "threshold, fast"]


class Page(html.parser.HTMLParser):
    """The tags of a page, in order, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def out(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "not" / "there yet"
    prompts = [argument for prompt in PROMPTS for argument in ("--prompt", prompt)]
    options = ["--steps", str(STEPS), "--repeats", "1", "--model", str(tiny_folder), "--out", str(folder)]
    even_plan(STEPS, 4, 2, pipe=load_pipeline(tiny_folder, progress=False)).save(folder.parent.parent / f"{STEPS}.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "FOLDER", folder.parent.parent)
        assert main(["demo", *prompts, *options]) == 0
    return folder


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / "index.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_the_page_has_a_figure_for_every_prompt_and_configuration(page: Page):
    assert len(page.named("figure")) == len(PROMPTS) * len(NAMES)


def test_the_page_needs_nothing_but_itself(page: Page, out: Path):
    text = (out / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"https?://|url\(|@import|//[a-z]+\.", text) == []
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"} == set()
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.named("img"))


def test_prompts_are_shown_as_text_and_not_as_markup(page: Page):
    assert "".join(page.text).count(PROMPTS[1]) == 1


def test_every_picture_has_a_text_and_every_difference_can_be_reached_by_keyboard(page: Page):
    assert all(image["alt"] for image in page.named("img"))
    focusable = [div for div in page.named("div") if div.get("tabindex") == "0"]
    differences = [image for image in page.named("img") if "difference" in image["alt"]]
    assert len(focusable) == len(differences) == len(PROMPTS) * (len(NAMES) - 1)


def test_the_step_lines_have_a_cell_for_each_step(page: Page, results: dict):
    lines = [div["aria-label"] for div in page.named("div") if div.get("class") == "steps"]
    assert len(lines) == len(results["pictures"])
    for label, picture in zip(lines, results["pictures"], strict=True):
        (line,) = picture["steps_line"].values()
        assert len(line) == STEPS
        assert label == f"{line.count('F')} of {STEPS} steps computed: {line}"


def test_the_results_hold_machine_settings_and_every_figure(results: dict):
    assert {"torch", "diffusers", "cache-dit"} <= set(results["machine"]["versions"])
    assert results["machine"]["threads"] >= 1
    assert (results["settings"]["prompts"], results["settings"]["steps"]) == (list(PROMPTS), STEPS)
    names = NAMES
    assert [entry["name"] for entry in results["configurations"]] == names
    assert [entry["name"] for entry in results["summary"]] == names
    assert [entry["configuration"] for entry in results["pictures"]] == names * len(PROMPTS)
    for picture in results["pictures"]:
        assert len(picture["seconds"]) == 1
        assert picture["executed_blocks"] <= picture["possible_blocks"] == STEPS * 3
        (line,) = picture["steps_line"].values()
        assert line.count("F") == picture["computed_steps"]


def test_something_was_skipped(results: dict):
    static = [entry for entry in results["pictures"] if entry["configuration"] == "preset mask"]
    assert all(entry["computed_steps"] < STEPS and entry["psnr"] is not None for entry in static)


def test_a_plan_is_followed_and_named(results: dict, page: Page):
    for name, expected, tag in (("plan 2×", 4, "DBCache_PLAN4of8_CFG0"), ("plan 4×", 2, "DBCache_PLAN2of8_CFG0")):
        pictures = [entry for entry in results["pictures"] if entry["configuration"] == name]
        assert [picture["computed_steps"] for picture in pictures] == [expected] * len(PROMPTS)
        assert tag in page.text


def test_the_sheet_shows_rows_and_columns(out: Path):
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 192 * len(NAMES)
        assert sheet.height > 192 * len(PROMPTS)


def test_the_page_is_opened_on_request(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plans, "FOLDER", tmp_path)
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    options = ["--steps", "2", "--repeats", "1", "--prompt", "owl", "--model", str(tiny_folder), "--open"]
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *options]) == 0
    configured = json.loads((tmp_path / "demo_out" / "results.json").read_text(encoding="utf-8"))["configurations"]
    assert [entry["name"] for entry in configured] == ["no cache", *NAMES[3:]]  # a model without a plan
    assert opened == [(tmp_path / "demo_out" / "index.html").as_uri()]
