import json

import pytest

from bench.quality.choose import TOLERANCE, setting_text
from bench.quality.masks import BUDGETS, CANDIDATES
from bench.quality.method import Context, Picture
from bench.quality.ours import BASELINES, OURS, PREDICTORS
from bench.quality.pictures import captions, held_out_pictures, search_pictures

ALL = {method.name: method for method in (*OURS, *BASELINES)}
STATIC = [name for name in ALL if name.startswith(("even mask", "bent mask"))]


@pytest.fixture(scope="module")
def context():
    return Context(steps=8)


@pytest.mark.parametrize("name", ALL)
def test_a_method_has_few_different_settings_of_plain_data(name):
    settings = ALL[name].settings(28)

    assert 10 <= len(settings) <= CANDIDATES
    assert len({setting_text(one) for one in settings}) == len(settings)
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize("name", ALL)
def test_every_setting_can_be_put_on_and_leaves_nothing_behind(name, context):
    pipe, method = context.pipe, ALL[name]
    before = [type(module) for module in pipe.transformer.modules()]
    method.prepare(context)

    for parameters in method.settings(context.steps):
        method.put_on(pipe, parameters, context)
        method.take_off(pipe)

    assert [type(module) for module in pipe.transformer.modules()] == before


@pytest.mark.parametrize("name", STATIC)
def test_even_masks_reach_every_budget_with_no_step_to_spare(name):
    fulls = {setting["full"] for setting in ALL[name].settings(28)}

    for budget in BUDGETS:
        assert max(full for full in fulls if 28 / full >= TOLERANCE * budget) == int(28 / (TOLERANCE * budget))


@pytest.mark.parametrize("name", STATIC[:3])
def test_a_static_mask_executes_the_work_of_its_computed_steps_alone(name, context):
    picture = Picture("noto emoji of teapot", 3)
    with ALL[name].drawer(context) as drawer:
        uncached = drawer.draw(None, picture)
        for setting in ALL[name].settings(context.steps)[::7]:
            drawing = drawer.draw(setting, picture)

            assert drawing.work == uncached.work * setting["full"] / context.steps
            assert drawing.blocks == uncached.blocks * setting["full"] / context.steps
            assert drawing.note == ""


def test_fewer_steps_execute_the_work_of_fewer_steps(context):
    (method,) = BASELINES
    picture = Picture("noto emoji of teapot", 3)
    with method.drawer(context) as drawer:
        uncached, fewer = drawer.draw(None, picture), drawer.draw({"steps": 4}, picture)

    assert fewer.work == uncached.work / 2


def test_a_drawing_that_was_made_without_the_cache_says_so(context):
    method = ALL["DBCache, reuse"]
    never = {
        **method.settings(8)[0],
        "residual_diff_threshold": 0.0,
    }
    with method.drawer(context) as drawer:
        drawing = drawer.draw(never, Picture("noto emoji of teapot", 3), counted=False)

    assert drawing.note == "nothing was cached"
    assert drawing.work is None


def test_every_predictor_is_tried():
    used = {setting.get("predictor") for method in OURS for setting in method.settings(28)}

    assert used == set(PREDICTORS)


def test_no_caption_of_the_search_is_among_those_of_the_result():
    sections = captions()

    assert len(sections["search"]) == 8
    assert len(sections["held out"]) == 64
    assert len({*sections["search"], *sections["held out"]}) == 72


def test_pictures_are_captions_times_seeds_each_with_a_noise_of_its_own():
    pictures = held_out_pictures(12, 3)

    assert [one.caption for one in pictures] == [caption for caption in captions()["held out"][:4] for _ in range(3)]
    assert len({one.seed for one in pictures}) == 12
    assert not {one.caption for one in search_pictures(8)} & {one.caption for one in pictures}
    with pytest.raises(ValueError, match="multiple of 3"):
        held_out_pictures(13, 3)
