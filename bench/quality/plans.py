"""The plans that are shipped with the demo model, as a method: one setting for each number of full steps."""

from typing import Literal

import cache_dit
from bench.quality.method import Context, InProcess, Parameters
from cache_dit.demo import DemoPipeline
from cache_dit.demo.plans import demo_plan, steps_planned


class Planned(InProcess):
    """What `cache_dit.plan` found on captions of its own."""

    name = "plan"
    owner: Literal["ours", "peer", "baseline"] = "ours"
    family = "plan"

    def settings(self, steps: int) -> list[Parameters]:
        if steps not in steps_planned():
            return []
        return [{"full_steps": point.full_steps} for point in reversed(demo_plan(steps).points)]

    def put_on(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> None:
        cache_dit.enable_cache(pipe, demo_plan(context.steps).select(full_steps=parameters["full_steps"]))

    def take_off(self, pipe: DemoPipeline) -> str:
        cache_dit.disable_cache(pipe)
        return ""


PLANS = (Planned(),)
