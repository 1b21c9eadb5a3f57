"""The plan as an artifact: its parts, its file, choosing a point, other numbers of steps, and what it holds for."""

from __future__ import annotations

import json
import math
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cache_dit
from cache_dit import DBCacheConfig, DBPruneConfig
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.point import PlanPoint, Quality, conformal
from cache_dit.engine.plans.schedule import BranchSchedule, GapRule
from cache_dit.engine.plans.scope import PlanScope, latent_tokens
from cache_dit.errors import ConfigError

SHIFTED = [3 * (1 - step / 10) / (1 + 2 * (1 - step / 10)) for step in range(10)]


def quality(mean: float, **more: Any) -> Quality:
    return Quality(mean, mean - 4, mean - 6, mean - 1, mean + 1, 16, **more)


def curve(*full_steps: int, steps: int = 10, chosen: int | None = None, **conditions: Any) -> Plan:
    """A plan whose points compute the first of the steps and the last, 30 dB and 2 for each full step."""
    points = []
    for count in full_steps:
        mask = "1" * (count - 1) + "0" * (steps - count) + "1"
        measured = quality(30 + 2 * count)
        points.append(PlanPoint(count, {"*": BranchSchedule(mask)}, measured=measured, ideal_speedup=steps / count))
    return Plan(PlanScope(**{"num_inference_steps": steps, **conditions}), tuple(points), chosen=chosen)


# -- rules and schedules


rules = st.builds(GapRule, st.integers(0, 3), st.floats(0, 1, allow_nan=False))


@given(rules)
def test_a_rule_is_found_again_by_its_name_and_by_its_parts(rule: GapRule) -> None:
    assert GapRule.of(rule.name) == GapRule.of(rule) == GapRule.of(("taylor", rule.order, rule.damping)) == rule


def test_rules_of_order_0_and_rules_damped_to_nothing_are_reuse() -> None:
    assert GapRule(0, 0.3) == GapRule(2, 0) == GapRule.of("reuse") == GapRule.of(["reuse"]) == GapRule()
    assert GapRule.of("taylor1") == GapRule.of(("taylor", 1)) == GapRule(1)
    assert GapRule(1, 0.4).predictor.coefficients([0, 2], 3) == pytest.approx([-0.2, 1.2])


@pytest.mark.parametrize("wrong", ["taylor", "taylor1*", "taylor1*x", "tailor1", "taylor1*2", 3, ("dmd", 1), (), None])
def test_what_is_no_rule_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        GapRule.of(wrong)


def test_a_step_has_the_rule_of_the_last_full_step_before_it() -> None:
    schedule = BranchSchedule("1100101", ("reuse", "taylor1", "taylor2*0.5", "taylor3"))  # type: ignore[arg-type]
    names = ["reuse", "reuse", "taylor1", "taylor1", "taylor1", "taylor2*0.5", "taylor2*0.5", "taylor3", "taylor3"]
    assert [schedule.rule(step).name for step in range(9)] == names
    assert schedule.full == (0, 1, 4, 6)
    assert schedule.order == 2


@pytest.mark.parametrize(
    ("mask", "count", "told"),
    [
        ("", 1, "at least one"),
        ("0101", 1, "a first step that is computed"),
        ("1201", 1, "0 and 1"),
        ("1101", 2, "3: one"),
    ],
)
def test_a_schedule_that_cannot_run_is_refused(mask: str, count: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        BranchSchedule(mask, (GapRule(),) * count)  # type: ignore[arg-type]


# -- the file


finite = st.floats(-1e6, 1e6)
numbers = st.one_of(finite, st.just(math.inf))
names = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=8)
qualities = st.builds(
    Quality,
    *[numbers] * 5,
    st.integers(0, 99),
    st.just("psnr"),
    st.none() | finite,
    st.booleans(),
    st.none() | st.lists(numbers).map(tuple),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of one to four points of six steps."""
    points = []
    for count in draw(st.sets(st.integers(1, 6), min_size=1, max_size=4)):
        rest = draw(st.permutations([1] * (count - 1) + [0] * (6 - count)))
        some = tuple(draw(st.lists(rules, min_size=count, max_size=count)))
        branches = draw(st.sets(names, min_size=1, max_size=2))
        points.append(
            PlanPoint(
                count,
                {name: BranchSchedule((1, *rest), some) for name in branches},
                draw(st.none() | qualities),
                draw(st.none() | qualities),
                draw(st.floats(0.1, 20)),
                draw(st.none() | finite),
            )
        )
    conditions = PlanScope(
        model_class=draw(st.none() | names),
        num_inference_steps=draw(st.integers(1, 6)),
        shift=draw(st.none() | finite),
        sigmas=draw(st.none() | st.tuples(*[st.floats(0, 1)] * 6)),
        branches=draw(st.none() | st.sets(names).map(tuple)),
        resolution=draw(st.none() | st.integers(1, 9999)),
    )
    chosen = draw(st.none() | st.sampled_from([point.full_steps for point in points]))
    cost = {"runs": 3, "of": {"a": 1.5}}
    return Plan(conditions, tuple(points), chosen, cost, draw(names))


@given(plans())
def test_what_is_saved_is_what_is_loaded(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    path = tmp_path_factory.getbasetemp() / "plan.json"
    plan.save(path)
    assert Plan.load(path) == Plan.of(str(path)) == Plan.of(plan.as_dict()) == Plan.of(plan) == plan
    assert json.loads(path.read_text(encoding="utf-8"))["version"] == 1


def test_the_file_is_small_and_has_sorted_keys_and_a_line_a_branch(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    schedules = {"uncond": BranchSchedule("100100"), "cond": BranchSchedule("110101", (GapRule(1, 0.4),))}
    Plan(PlanScope(num_inference_steps=6), (PlanPoint(4, schedules, ideal_speedup=2.0),), chosen=4).save(path)
    assert path.read_text(encoding="utf-8").splitlines() == [
        "{",
        ' "chosen": 4,',
        ' "cost": {},',
        ' "note": "",',
        ' "points": [',
        "  {",
        '   "branches": {',
        '    "cond": {"mask": "110101", "rules": ["taylor1*0.4", "taylor1*0.4", "taylor1*0.4", "taylor1*0.4"]},',
        '    "uncond": {"mask": "100100", "rules": ["reuse", "reuse"]}',
        "   },",
        '   "full_steps": 4,',
        '   "ideal_speedup": 2.0',
        "  }",
        " ],",
        ' "scope": {"num_inference_steps": 6},',
        ' "version": 1',
        "}",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "version=2 is not valid: expected 1, the format that this release reads; plan anew"),
        ({"pionts": []}, "plan: unknown key 'pionts'; did you mean 'points'?"),
        ({"scope": {}}, "num_inference_steps=None is not valid"),
        ({"scope": {"stpes": 3}}, "scope: unknown key 'stpes'"),
        ({"points": []}, "at least one"),
        ({"points": 3}, "points=3 is not valid: expected a list"),
        ({"points": [{"full_steps": 2}]}, "points: the field 'branches' is missing"),
        ({"points": [{"full_steps": 2, "branches": {"*": {"mask": "11"}}}]}, "of at least 10 steps"),
        ({"chosen": 3}, "chosen=3 is not valid: expected one of the points' full steps: 6, 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_file_that_cannot_work_is_refused_and_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**curve(4, 6).as_dict(), **change}), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        Plan.load(path)
    assert str(error.value).startswith(os.fspath(path))
    assert told in str(error.value)


@pytest.mark.parametrize("content", ["", "[1]", "nul", None])
def test_what_is_no_file_of_a_plan_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"plan.json'.*(cannot be read|expected a JSON file)"):
        Plan.load(path)
    with pytest.raises(ConfigError, match="plan=3 is not valid: expected a Plan"):
        Plan.of(3)
    with pytest.raises(ConfigError, match="this is no plan: 'int' object is not iterable"):
        Plan.of({**curve(4).as_dict(), "points": [{"full_steps": 4, "branches": {"*": {"mask": 5}}}]})


# -- choosing


def test_a_point_is_chosen_by_quality_by_speed_or_by_its_full_steps() -> None:
    plan = curve(8, 2, 4, 6)
    assert [point.full_steps for point in plan.points] == [8, 6, 4, 2]
    assert plan.select(target_psnr=37).chosen == 4
    assert plan.select(target_psnr=38).chosen == 4
    assert plan.select(target_psnr=38.1).chosen == 6
    assert plan.select(speedup=2).chosen == 4
    assert plan.select(speedup=1).chosen == 8
    assert plan.select(full_steps=6).point.full_steps == 6


@pytest.mark.parametrize(
    "asked",
    [{}, {"speedup": 2, "full_steps": 4}, {"target_psnr": 60}, {"speedup": 9}, {"full_steps": 5}, {"speedup": 0}],
)
def test_what_no_point_reaches_and_what_says_too_little_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        curve(8, 4).select(**asked)


def test_without_a_chosen_point_there_is_none_to_run() -> None:
    with pytest.raises(ConfigError, match=r"no point of the plan is chosen, and there are 2: pass plan\.select"):
        _ = curve(8, 4).point


# -- what it holds for


def test_all_that_differs_is_told_and_what_is_unknown_is_not_compared() -> None:
    conditions = PlanScope("Flux", "ab", 28, "Euler", 3.0, None, ("cond", "uncond"), 4096, "bfloat16")
    plan = Plan(conditions, (PlanPoint(1, {"*": BranchSchedule("1" * 28)}),), chosen=1)
    plan.check()
    plan.check(model_class="Flux", num_inference_steps=28, branches=("uncond", "cond"))
    with pytest.raises(ConfigError) as error:
        plan.check(PlanScope(weights="cd", shift=1.0), num_inference_steps=50, branches=("cond",), dtype="float32")
    assert str(error.value).startswith(
        "the plan 1of28 was made with weights='ab', not 'cd'; num_inference_steps=28, not 50; shift=3.0, not 1.0; "
        "branches=('cond', 'uncond'), not ('cond',); dtype='bfloat16', not 'float32': plan anew"
    )


def test_noise_levels_are_compared_to_a_thousandth_and_only_for_one_resolution() -> None:
    one = PlanScope(sigmas=SHIFTED, resolution=16)  # type: ignore[arg-type]
    near = PlanScope(sigmas=[level + 5e-4 for level in SHIFTED])  # type: ignore[arg-type]
    far = PlanScope(sigmas=[level + 5e-3 for level in SHIFTED])  # type: ignore[arg-type]
    assert one.differences(near) == []
    assert one.differences(far) == ["sigmas[0]=1.0000, not 1.0050"]
    assert PlanScope(sigmas=SHIFTED).differences(far) == []  # type: ignore[arg-type]


def test_it_knows_branches_by_their_schedules_and_those_that_it_was_made_with() -> None:
    assert curve(4).knows("anything")
    named = curve(4, branches=("cond",))
    assert named.knows("cond")
    assert named.knows(("cond", "controlled"))
    assert not named.knows("uncond")


def test_the_tokens_of_a_latent_are_its_positions() -> None:
    assert latent_tokens((2, 4096, 64)) == 4096
    assert latent_tokens((1, 16, 128, 96)) == 128 * 96
    assert latent_tokens((1, 16, 5, 8, 8)) == 320


# -- other numbers of steps


@given(
    st.integers(2, 40).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(1, steps), st.randoms())),
    st.integers(1, 60),
)
def test_an_adapted_plan_computes_as_many_steps_begins_with_one_and_keeps_the_last_one_last(
    old: tuple[int, int, Any], steps: int
) -> None:
    length, count, random = old
    full = {0, *random.sample(range(1, length), count - 1)}
    mask = "".join(str(int(step in full)) for step in range(length))
    point = PlanPoint(count, {"*": BranchSchedule(mask, ("reuse",) * count)})  # type: ignore[arg-type]
    plan = Plan(PlanScope(num_inference_steps=length), (point,), chosen=count)
    if count > steps:
        with pytest.raises(ConfigError, match=f"at least {count}"):
            plan.adapt(steps)
        return
    found = plan.adapt(num_inference_steps=steps)
    schedule = found.point.branches["*"]
    assert len(schedule.mask) == steps == found.scope.num_inference_steps
    assert sum(schedule.mask) == count
    assert count == 1 or schedule.mask[-1] >= int(mask[-1])
    if steps == length:
        assert schedule.text == mask


def test_full_steps_go_to_the_same_noise_levels_and_keep_their_rules() -> None:
    rules = ("reuse", "taylor1", "taylor2", "reuse")
    point = PlanPoint(
        4, {"*": BranchSchedule("1001001001", rules)}, measured=quality(35, held_out=True), ideal_speedup=2.5
    )  # type: ignore[arg-type]
    plan = Plan(PlanScope(num_inference_steps=10, sigmas=SHIFTED), (point,), chosen=4)  # type: ignore[arg-type]
    double = [3 * (1 - step / 20) / (1 + 2 * (1 - step / 20)) for step in range(20)]
    straight = [1 - step / 20 for step in range(20)]
    found = plan.adapt(20, double)
    assert found.point.branches["*"].full == (0, 6, 12, 19)
    assert [rule.name for rule in found.point.branches["*"].rules] == list(rules)
    levels = [straight[step] for step in plan.adapt(20, straight).point.branches["*"].full]
    assert levels[1:3] == pytest.approx([SHIFTED[3], SHIFTED[6]], abs=0.026)
    assert plan.adapt(20).point.branches["*"].full == (0, 6, 12, 19)


def test_an_adapted_plan_says_that_it_is_an_estimate() -> None:
    plan = curve(8, 4, chosen=8, sigmas=SHIFTED)
    found = plan.adapt(6)
    assert found.note == "an estimate: adapted from 10 to 6 steps"
    assert [point.full_steps for point in found.points] == [4]
    assert found.chosen is None
    assert found.points[0].quality is None
    assert found.points[0].adapted_from == found.adapt(8).points[0].adapted_from == 10
    assert found.points[0].told == "unknown: an estimate"
    assert found.points[0].ideal_speedup == pytest.approx(1.5)
    assert found.scope.sigmas is None
    assert "note: an estimate" in str(found)
    assert "unknown: an estimate" in str(found)
    for told in (str(found), repr(found)):
        assert "38" not in told
    with pytest.raises(ConfigError, match="target_psnr=30"):
        found.select(target_psnr=30)
    assert "by their numbers" in curve(4).adapt(20).note


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(ConfigError, match="sigmas="):
        curve(4).adapt(5, [0.1, 0.2, 0.3, 0.4, 0.5])
    with pytest.raises(ConfigError, match="5 noise levels"):
        curve(4).adapt(5, [0.5, 0.4])
    longer = Plan(PlanScope(num_inference_steps=8), curve(4).points)
    with pytest.raises(ConfigError, match="calls the model more often"):
        longer.adapt(20)


def test_a_plan_is_printed_in_a_line_a_point_with_what_it_is_for() -> None:
    plan = curve(6, 4, model_class="Flux", scheduler="Euler", branches=("uncond", "cond"))
    assert str(plan).splitlines() == [
        "plan for Flux: 10 steps, Euler, branches cond, uncond",
        "  full steps  ideal speed-up  quality",
        "  6 of 10     1.67            42.0 dB, mean of 16 pictures of the search (5th percentile 38.0)",
        "  4 of 10     2.50            38.0 dB, mean of 16 pictures of the search (5th percentile 34.0)",
        "no point is chosen: see plan.select",
    ]
    chosen = replace(promising((40.0,) * 9).select(full_steps=4), note="try it")
    assert str(chosen).splitlines()[3:] == [
        "→  4 of 10     2.50            40.0 dB, mean of 16 held-out pictures (5th percentile 36.0)",
        "note: try it",
    ]
    called = Plan(PlanScope(num_inference_steps=10, call={"guidance_scale": 2, "tiled": True}), plan.points)
    assert str(called).splitlines()[1] == "made with guidance_scale=2, tiled=True"
    unknown = Plan(PlanScope(num_inference_steps=2), (PlanPoint(1, {"*": BranchSchedule("10")}),), chosen=1)
    assert str(unknown).splitlines()[::2] == ["plan for any model: 2 steps", "→  1 of 2      1.00            not known"]


def test_a_note_stands_under_its_point_and_under_no_other() -> None:
    plan = curve(8, 6, 4, chosen=6)
    points = tuple(replace(point, note="too few prompts") if point.full_steps == 6 else point for point in plan.points)
    noted = replace(plan, points=points, note="for all")
    rows = str(noted).splitlines()
    assert [place for place, row in enumerate(rows) if "too few prompts" in row] == [4]
    assert rows[3].startswith("→  6 of 10")
    assert rows[4].strip() == "note: too few prompts"
    assert rows[-1] == "note: for all"
    assert [point.note for point in noted.adapt(20).points] == ["", "", ""]  # of pictures that are none of its own
    assert Plan.of(noted.as_dict()) == noted


# -- the promise

levels = st.sampled_from([0.5, 0.75, 0.8, 0.9, 0.95])


@given(scores=st.lists(st.floats(-50, 50), min_size=2, max_size=60), level=levels)
def test_of_exchangeable_scores_at_least_the_level_is_covered(scores: list[float], level: float) -> None:
    """Whichever of n + 1 scores comes last: averaged over that, the others' quantile covers it often enough."""
    others = [scores[:index] + scores[index + 1 :] for index in range(len(scores))]
    if len(scores) - 1 < level / (1 - level) - 1e-9:
        return
    covered = sum(score <= conformal(rest, level) for score, rest in zip(scores, others, strict=True))
    assert covered / len(scores) >= level - 1e-9


@given(count=st.integers(1, 200), level=levels)
def test_coverage_is_not_bought_with_a_lower_promise_than_needed(count: int, level: float) -> None:
    needed = math.ceil(level / (1 - level) - 1e-9)
    if count < needed:
        with pytest.raises(ConfigError, match=rf"at least {needed} kept apart"):
            conformal([0.0] * count, level)
        return
    rank = 1 + sorted(range(count)).index(int(conformal(list(map(float, range(count))), level)))
    assert level <= rank / (count + 1) + 1e-12
    assert (rank - 1) / (count + 1) < level


@pytest.mark.parametrize("level", [0, 1, 1.5, -0.1, "high"])
def test_a_level_is_a_share(level: Any) -> None:
    with pytest.raises(ConfigError, match="level="):
        conformal([1.0] * 100, level)


def promising(psnrs: tuple[float, ...] | None, **changes: Any) -> Plan:
    """A plan whose chosen point has these PSNRs of pictures kept apart, and another with better ones."""
    own = replace(quality(40), **{"held_out": True, "values": psnrs, **changes})
    better = replace(own, values=None if psnrs is None else tuple(psnr + 10 for psnr in psnrs))
    points = [replace(point, measured=one) for point, one in zip(curve(6, 4).points, (better, own), strict=True)]
    return replace(curve(4), points=tuple(points), chosen=4)


def test_a_plan_promises_what_its_pictures_kept_apart_reached_for_its_chosen_point(tmp_path: Path) -> None:
    psnrs = tuple(30.0 + picture for picture in range(19))
    plan = promising(psnrs)
    assert plan.promise() == plan.promise(0.9) == 31.0  # of 19 the second lowest: 18 of 20 reach as much
    assert plan.promise(0.5) == 39.0
    assert plan.select(full_steps=6).promise(0.9) == 41.0
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").promise(0.95) == 30.0


@given(psnrs=st.lists(st.floats(10, 90), min_size=20, max_size=40), level=levels)
def test_a_surer_promise_is_never_a_higher_one(psnrs: list[float], level: float) -> None:
    plan = promising(tuple(psnrs))
    assert min(psnrs) <= plan.promise(level) <= plan.promise(0.5) <= max(psnrs)


def test_over_many_plans_the_promise_holds_for_at_least_the_level() -> None:
    rng, held, rounds, each = random.Random(5), 0, 200, 20
    for _ in range(rounds):
        promised = promising(tuple(rng.gauss(60, 8) for _ in range(9))).promise(0.8)
        held += sum(rng.gauss(60, 8) >= promised for _ in range(each))
    assert 0.78 <= held / (rounds * each) <= 0.86


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (promising((40.0,) * 8), "8 pictures kept apart are too few .* at least 9 kept apart .* at most 0.89"),
        (promising(None), "no PSNRs of pictures kept apart.*plan anew with cache_dit.plan"),
        (promising((40.0,) * 9, held_out=False), "no PSNRs of pictures kept apart"),
        (promising((0.9,) * 9, metric="ssim"), "no PSNRs of pictures kept apart"),
        (promising((40.0,) * 9).adapt(20), "no PSNRs of pictures kept apart"),
        (curve(4, chosen=4), "no PSNRs of pictures kept apart"),
        (curve(4), "no point of the plan is chosen"),
    ],
)
def test_what_cannot_be_promised_is_refused(plan: Plan, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plan.promise(0.9)


def test_the_guard_of_earlier_releases_is_refused_with_what_there_is_instead() -> None:
    told = r"plan\.promise\(level\)"
    with pytest.raises(ConfigError, match=told):
        curve(4).with_guard(0.9)
    with pytest.raises(AttributeError, match=told):
        cache_dit.calibrate_guard  # noqa: B018
    for config in (DBCacheConfig, DBPruneConfig):
        with pytest.raises(ConfigError, match=told):
            config(plan_guard=0.9)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=told):
            config().update(plan_guard=0.9)


def test_an_older_file_is_read_without_its_guard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan, path = curve(6, 4, chosen=4), tmp_path / "plan.json"
    guard = {"full_steps": 4, "scale": [1.0] * 10, "target": 30.0, "psnrs": [30.0]}
    written = {**plan.as_dict(), "guard": guard, "guard_level": 0.9, "sensitivities": [1.0] * 10}
    written["conditions"] = written.pop("scope")
    path.write_text(json.dumps(written), encoding="utf-8")
    with caplog.at_level("INFO", logger="cache_dit"):
        assert Plan.load(path) == plan
    assert [one for one in caplog.messages if "guard" in one] == [
        "cache_dit: the plan's guard is left out, as this release has none: see plan.promise(level)"
    ]
