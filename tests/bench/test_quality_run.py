import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import cache_dit
from bench.quality import run as quality_run
from bench.quality import shown
from bench.quality.choose import findings, key_of
from bench.quality.drawing import Method, NotRun, Setup, held_out_pictures, search_pictures
from bench.quality.methods import methods
from bench.quality.run import (
    Artist,
    Job,
    Plan,
    carry_out,
    describe,
    done,
    evaluation_jobs,
    run,
    search_jobs,
    spread_out,
)
from bench.report.page import Section
from bench.results import ROOT, Results

MASK, FEWER = methods()["even mask, taylor1"], methods()["fewer steps"]
STEPS = 4
SECTION = Section("quality", "Quality", shown.parts)


class Absent(Method):
    """A method whose environment is not there."""

    @contextmanager
    def drawer(self, context):
        raise NotRun("no such environment")
        yield


@contextmanager
def broken(context, parameters):
    """Raises at the second setting."""
    if not parameters["ok"]:
        raise RuntimeError("does not fit")
    yield


ABSENT = Absent("absent", "peer", "absent", lambda steps: [{"a": 1}, {"a": 2}], version="9")
BROKEN = Method("broken", "peer", "broken", lambda steps: [{"ok": True}, {"ok": False}], broken)


@pytest.fixture
def table(monkeypatch):
    """The methods that jobs find by their names."""
    known = {method.name: method for method in (MASK, FEWER, ABSENT, BROKEN)}
    monkeypatch.setattr(quality_run, "methods", lambda: known)
    return known


def plan_of(table, folder: Path, *names, **options):
    return Plan(
        methods={name: table[name] for name in names},
        setup=Setup(STEPS, "processor", 1, folder),
        budgets=(1.5, 2.0),
        search=search_pictures(1),
        held_out=held_out_pictures(2, 1),
        **options,
    )


def results_at(folder: Path):
    settings = {"quick": True, "steps": STEPS, "budgets": [1.5, 2.0], "pictures": 2, "seeds": 1, "threads": 1}
    return Results.open(
        folder / "quality.json", "quality", {**settings, "search_captions": 1, "candidates": 24, "clock": "processor"}
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of two methods, and its plan."""
    folder = tmp_path_factory.mktemp("whole")
    plan = plan_of({MASK.name: MASK, FEWER.name: FEWER}, folder, MASK.name, FEWER.name, candidates=3)
    results = results_at(folder)
    run(results, plan)
    return results, plan


def test_a_run_has_a_row_for_each_candidate_and_each_chosen_setting(finished):
    results, plan = finished

    for name in plan.methods:
        candidates = results.rows[f"method/{name}"]["candidates"]
        assert {key for key in results.rows if key.startswith(f"search/{name}/")} == {
            key_of("search", name, one) for one in candidates
        }
    chosen = {job.key for job in evaluation_jobs(results.rows, plan)}
    assert chosen == {key for key in results.rows if key.startswith("result/")}
    assert chosen


def test_a_result_holds_a_raw_sample_of_each_picture(finished):
    results, plan = finished
    (job, *_) = evaluation_jobs(results.rows, plan)

    row = results.rows[job.key]

    assert {name: len(row[name]) for name in ("psnr", "ssim", "lpips", "work", "blocks", "seconds")} == dict.fromkeys(
        ("psnr", "ssim", "lpips", "work", "blocks", "seconds"), 2
    )
    assert row["speedup"] == pytest.approx(row["uncached"]["work"] * 2 / sum(row["work"]), abs=1e-4)


def test_a_run_that_was_ended_draws_only_what_is_missing(finished, tmp_path, monkeypatch):
    results, plan = finished
    again = results_at(tmp_path)
    again.rows = dict(results.rows)
    missing = key_of("result", FEWER.name, {"steps": 2})
    del again.rows[missing]
    drawn = []
    monkeypatch.setattr(Artist, "do", lambda self, job: drawn.append(job.key) or dict(results.rows[job.key]))

    run(again, plan)

    assert drawn == [missing]
    assert again.rows == {**results.rows, "metrics": again.rows["metrics"]}


def test_findings_hold_ours_against_the_best_of_the_others(finished):
    results, _ = finished

    found = {(one.group, one.name): one for one in findings(results.rows, results.settings)}

    ours, other = found["mean PSNR at 2×", MASK.name], found["mean PSNR at 2×", FEWER.name]
    compared = found["ours against the others", "ours − best other at 2×, mean PSNR"]
    assert compared.value == pytest.approx(ours.value - other.value)
    assert compared.low <= compared.value <= compared.high
    assert compared.reached == (compared.value > 0)
    assert found["measured speed-up at 2×", FEWER.name].value > 1


def test_the_section_shows_results_that_are_whole_partly_there_and_empty(finished, tmp_path):
    results, _ = finished
    searched = results_at(tmp_path)
    whole, charts = SECTION.text(results)

    assert f"| **even mask, taylor1** | cache_dit (this project) {cache_dit.__version__} |" in whole
    assert next(iter(charts)) == "bench_quality_psnr"
    assert SECTION.text(searched)[0]
    searched.rows = {key: row for key, row in results.rows.items() if not key.startswith("result/")}
    text, charts = SECTION.text(searched)
    assert "### The search" in text
    assert not charts


@pytest.mark.slow
def test_a_method_that_cannot_run_is_told_and_the_others_go_on(table, tmp_path):
    results = results_at(tmp_path)

    run(results, plan_of(table, tmp_path, "absent", "broken", FEWER.name, candidates=2))

    assert results.rows["method/absent"]["not run"] == "no such environment"
    assert results.rows[key_of("search", "broken", {"ok": False})]["failed"] == "RuntimeError: does not fit"
    assert results.rows[key_of("search", "broken", {"ok": True})]["psnr"] == [
        None
    ]  # nothing was put on: the same picture
    assert any(key.startswith("result/fewer steps/") for key in results.rows)
    text, _ = SECTION.text(results)
    assert "- absent: no such environment" in text
    assert "- broken: 1 settings failed, e.g. RuntimeError: does not fit" in text


def test_after_a_failure_the_next_setting_gets_a_new_worker(monkeypatch, tmp_path):
    opened = []

    def fail(parameters, picture, *, counted=True):
        raise RuntimeError("no answer")

    class Fragile(Method):
        @contextmanager
        def drawer(self, context):
            opened.append(self)
            yield fail

    fragile = Fragile("fragile", "peer", "fragile", lambda steps: [])
    monkeypatch.setattr(quality_run, "methods", lambda: {"fragile": fragile})
    artist = Artist(Setup(STEPS, "processor", 1, tmp_path))
    for number in range(2):
        row = artist.do(Job("a", "fragile", {"a": number}, search_pictures(1)))
        assert row["failed"] == "RuntimeError: no answer"
    assert len(opened) == 2


def test_what_failed_or_could_not_run_is_tried_again(table, tmp_path, monkeypatch):
    results, plan = results_at(tmp_path), plan_of(table, tmp_path, "absent")
    rows = {"not run": "no such environment"}, {"failed": "no answer"}, {"speedup": 1.0, "psnr": [50.0]}
    for row in rows:
        monkeypatch.setattr(Artist, "do", lambda self, job, row=row: {**row})
        describe(results, plan)
        carry_out(results, plan, "search", list(search_jobs(results, plan)))
    assert [results.rows[key_of("search", "absent", {"a": number})]["psnr"] for number in (1, 2)] == [[50.0], [50.0]]
    assert "not run" not in results.rows["method/absent"]


@pytest.mark.slow
def test_several_processes_give_the_rows_of_one(table, tmp_path):
    plan = plan_of(table, tmp_path, FEWER.name)
    work = [Job("a", FEWER.name, {"steps": 2}, plan.search), Job("b", FEWER.name, {"steps": 3}, plan.search)]

    alone = {job.key: row for job, row in done(work, plan.setup, 1)}
    together = {job.key: row for job, row in done(work, plan.setup, 2)}

    assert together == alone


def test_candidates_that_are_too_many_are_thinned_out_evenly():
    assert spread_out(list(range(10)), 4) == [0, 3, 6, 9]
    assert spread_out([1, 2], 4) == [1, 2]
    assert spread_out([1, 2], 1) == [1]


# -- a process that was started for a bench does not outlive it

PROGRAM = """
import multiprocessing, os, time
from pathlib import Path
from bench.quality import run
from bench.quality.drawing import Setup

def work():
    run._begin(Setup(2))
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work).start()
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_process_ends_when_its_parent_is_killed(name, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline())
        parent.send_signal(getattr(signal, name))
        parent.stdout.read()  # ends when the last process that could write there has ended
