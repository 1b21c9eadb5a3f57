"""The report: a page that is whole, safe and loads nothing, and the documentation's page made of the same sections."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from bench.commands import main
from bench.findings import Finding
from bench.report import style
from bench.report.page import Section, html, page, paired, read_folder, save_report, sections
from bench.report.parts import Chart, Line, Panel, Table, findings_table
from bench.results import Results
from tools.docs import benchmarks

MACHINE = {
    "device": "abacus <b>",
    "system": "clay",
    "cores": 2,
    "threads": 1,
    "memory_gib": None,
    "load": None,
    "versions": {"torch": "<2>"},
}
NASTY = "a|b <script>alert(1)</script> *c* _d_ `e` [f](javascript:g) &amp; \\h"

#: Elements that have no end tag.
_VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Reads a page: checks that what opens closes, and keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def drawings() -> list[Chart]:
    line = Line([1, 2], [3, 4], "<i>ours</i>", {"color": style.COMPUTED, "marker": "o"})
    names = ("first", "second")
    return [Chart(f"weight_{one}", f'"{one}" & <all>', [Panel(f"x of {one}", lines=[line])], 4, 2) for one in names]


def section(name: str = "weight", text: str = "Weighed.\n\n---\n\n{second}\n\n---\n\nEnd.\n\n{first}\n") -> Section:
    first, second = drawings()
    return Section(name, f"Title of {name}", lambda results: {"first": first, "second": second, "nothing": ""}, text)


def results(name: str = "weight", *, path: str | Path | None = None, quick: bool = False) -> Results:
    found = [Finding(NASTY, 1.25, "×", 1.0, 1.5, "≤ 1.3", True, group="<g>"), Finding("n", 3, "breaks", reached=False)]
    settings = {"quick": quick, "nested": {"<key>": [1, 2]}}
    return Results(Path(path or f"{name}.json"), name, settings, MACHINE, {"a": {}}, found, 125.0)


def read(*pairs: tuple[Section, Results | None], unread: tuple[str, ...] = ()) -> Reader:
    return Reader(page(pairs, unread))


# -- the page


def test_the_page_is_balanced_and_says_what_the_results_say() -> None:
    reader = read((section(), results()))
    said = " ".join(reader.text.split())
    for part in ("Title of weight", "Weighed.", "cache-dit bench weight", "nested.<key>", "1, 2", "2 min", "1 of 2"):
        assert part in said
    assert "abacus <b>, 2 cores, 1 thread, clay; torch <2>" in said


def test_names_with_markup_are_text() -> None:
    reader = read((section(text=Table(["x"], [[NASTY]]).markdown()), results()), unread=("<file>.json",))
    assert reader.text.count(NASTY) == 1
    assert not {"script", "b", "i", "file"} & {tag for tag, _ in reader.tags}
    assert "<file>.json" in reader.text


def test_a_sections_tags_and_pictures_and_scripts_stay_text() -> None:
    text = '<img src="x.png" onerror="a()"> <script>b()</script> ![c](https://d.example/e.png) [f](javascript:g)\n'
    reader = read((section(text=text), results()))
    assert not {"img", "script"} & {tag for tag, _ in reader.tags}
    assert all(not name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert not any("javascript" in (attributes["href"] or "") for attributes in reader.named("a"))


def test_the_page_loads_nothing() -> None:
    reader = read((section(), results()), (section("other"), None))
    (policy,) = (one["content"] for one in reader.named("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not {"script", "link", "iframe", "object", "image"} & {tag for tag, _ in reader.tags}
    for _, attributes in reader.tags:
        for name, value in attributes.items():
            assert name not in ("href", "src") or (value or "").startswith(("#", "data:")), (name, value)
            assert "url(" not in (value or "")
    assert "@import" not in page([(section(), results())])


def test_figures_have_words_and_stand_in_their_places() -> None:
    text = page([(section(), results())])
    first, second = Reader(text).named("img")
    assert [first["alt"], second["alt"]] == ['"second" & <all>', '"first" & <all>']  # the one with a place first
    places = [text.index(said) for said in ("Weighed.", str(first["src"]), "End.", str(second["src"]))]
    assert places == sorted(places)
    drawn = base64.b64decode(str(first["src"]).partition("base64,")[2]).decode()
    assert "x of second" in drawn and "FIGURE" not in text


def test_what_was_not_run_is_said_with_its_command() -> None:
    reader = read((section("gpu"), None))
    assert "Not run." in reader.text and "cache-dit bench gpu" in reader.text


def test_a_part_of_a_page_that_has_nothing_to_show_is_left_out() -> None:
    text, charts = section(text="A {?first}\n\n---\n\nB {nothing}\n\n---\n\nC {?nothing}").text(results())
    assert text.split() == ["A"]
    assert set(charts) == {"weight_first", "weight_second"}


def test_a_table_prints_on_a_terminal_as_it_does_in_markdown() -> None:
    table = findings_table([Finding(NASTY, 1.25, "×", 1.0, 1.5, "≤ 1", False, group="g")], grouped=True)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table.terminal())
    for said in (NASTY, "1.2500 ×", "1.0000 – 1.5000", "≤ 1", "missed"):
        assert said in captured.get()


def test_quick_and_unfinished_results_are_told_as_such() -> None:
    unfinished = results(quick=True)
    unfinished.findings = []
    said = read((section(), unfinished)).text
    assert "its numbers say nothing" in said
    assert "rows so far: 1" in said
    assert "not finished, quick" in said


# -- which files and sections


def test_benches_come_in_their_order_and_those_without_a_section_last() -> None:
    files = [results("weight"), results("odd"), results("weight", path="weight_2.json")]
    pairs = paired(files, [section("quality"), section("weight")])
    shown = [(one.title, None if other is None else other.path.name) for one, other in pairs]
    assert shown == [
        ("Title of quality", None),
        ("Title of weight", "weight.json"),
        ("Title of weight", "weight_2.json"),
        ("Odd", "odd.json"),
    ]
    assert [one.bench for one, _ in paired(files[:1], [section("quality"), section("weight")], whole=False)] == [
        "weight"
    ]
    assert "Title of weight (weight_2.json)" in read(*pairs).text


def test_a_bench_without_a_section_shows_its_findings() -> None:
    ((plain, odd),) = paired([results("odd")], [])
    assert odd is not None
    assert NASTY in Reader(html(plain.text(odd)[0])).text


def test_a_folders_other_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results(path=tmp_path / "weight.json").save()
    (tmp_path / "broken.json").write_text("{")
    found, unread = read_folder(tmp_path)
    assert [one.path.name for one in found] == ["weight.json"]
    assert ["broken.json" in line for line in unread] == [True]
    out = tmp_path / "folder" / "all.html"
    assert main(["report", str(tmp_path), "--out", str(out)]) == 0
    assert "broken.json" in Reader(out.read_text(encoding="utf-8")).text
    assert str(out) in capsys.readouterr().out.replace("\n", "")


def test_the_sections_of_the_benches_are_whole() -> None:
    found = sections()
    assert len({one.bench for one in found}) == len(found)
    for one in found:
        assert one.title == one.title.strip() != ""


def test_a_folder_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "none")])
    assert "is no folder" in capsys.readouterr().err


def test_the_report_of_one_file_is_silent_about_other_benches(tmp_path: Path) -> None:
    save_report(tmp_path / "x.html", [results()], known=[section("quality"), section()], whole=False)
    assert "Title of quality" not in (tmp_path / "x.html").read_text(encoding="utf-8")


# -- parts


def test_a_table_of_findings_keeps_its_columns_whatever_the_names() -> None:
    lines = findings_table([Finding(NASTY, 1, "|", 0, 2, "≤ 2", False)]).markdown().splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [6, 6, 6]
    assert NASTY in Reader(html("\n".join(lines))).text


@pytest.mark.parametrize(
    ("finding", "value", "interval"),
    [
        (Finding("a", 1.23456, "×", 1.2, 1.3), "1.2346 ×", "1.2000 – 1.3000"),
        (Finding("a", 3, "breaks"), "3 breaks", ""),
        (Finding("a", 12345678.0, "bytes"), "12345678 bytes", ""),
        (Finding("a", 0.12345, "bits"), "0.123 bits", ""),
        (Finding("a", 31.234, "dB", 31.0, None), "31.23 dB", ""),
    ],
)
def test_values_have_the_digits_of_their_unit(finding: Finding, value: str, interval: str) -> None:
    assert (finding.value_text, finding.interval_text) == (value, interval)


def test_a_drawing_is_the_same_for_the_same_data() -> None:
    first, second = ([style.svg(one.figure()) for one in drawings()] for _ in range(2))
    assert first == second
    assert not re.search(r"\d{4}-\d\d-\d\dT|Matplotlib v", first[0])


# -- the documentation's page


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(benchmarks, "sections", lambda: [section("gpu"), section()])
    results(path=tmp_path / "weight.json").save()
    results(path=tmp_path / "weight_2.json").save()
    return tmp_path


def test_the_docs_page_links_the_figures_that_are_drawn(folder: Path, tmp_path: Path) -> None:
    text = benchmarks.page(folder)
    (tmp_path / "bench_old.svg").write_text("")
    benchmarks.draw(folder, tmp_path)
    linked = set(re.findall(r"\(figures/(\w+)\.svg\)", text))
    assert linked == {file.stem for file in tmp_path.glob("*.svg")}
    assert len(linked) == 4
    assert "**Not run.**" in text
    assert "[Title of weight (weight_2.json)](#title-of-weight-weight_2json)" in text


def test_the_docs_page_is_the_same_for_the_same_files(folder: Path) -> None:
    assert benchmarks.page(folder) == benchmarks.page(folder)
