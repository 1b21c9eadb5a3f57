"""What a watched run shows: its features, how guidance mixes its branches, and what it ran with."""

from __future__ import annotations

from typing import Any

from cache_dit.engine.forward.stepwise import Pass
from cache_dit.engine.plans.scope import branch_name, latent_tokens
from cache_dit.engine.sessions.model_facts import scheduler_facts
from cache_dit.engine.sessions.session import current_request
from cache_dit.engine.state.measure import first_tensor
from cache_dit.planning.gram import GramStream
from cache_dit.planning.guidance import MixtureWatch


class FeatureWatch:
    """Told of the computed steps of a run: its features go to a `GramStream`, and what it ran with is noted."""

    def __init__(self, state: Any, stream: GramStream) -> None:
        self.state = state
        self.stream = stream
        self.seen = 0
        self.scheduler: dict[str, Any] = {}
        self.mixture = MixtureWatch()
        self.resolution: int | None = None

    def __call__(self, made: Pass, output: Any) -> None:
        """Take note of a computed step."""
        if made.run.snapshot_hidden is None:
            return
        if not self.seen:  # before the scheduler has moved on
            scheduler = getattr(current_request(), "scheduler", None)
            if scheduler is not None:
                self.scheduler = {**scheduler_facts(scheduler), "sigmas": _sigmas(scheduler, self.stream.steps)}
        if self.resolution is None and made.call.latent is not None:
            self.resolution = latent_tokens(made.call.latent.shape)
        chains = [chain for chain, _ in self.state.chains]
        self.seen = max(self.seen, made.call.step + 1)
        self.mixture.see(made.call.step, branch_name(made.call.branch), made.call.latent, first_tensor(output))
        feature, chain = made.run.snapshot_hidden, chains.index(made.lane.chain)
        self.stream.add(branch_name(made.call.branch), made.call.step, feature, chain=chain)


def _sigmas(scheduler: Any, steps: int) -> list[float] | None:
    """The noise level of each step of the run that a scheduler has begun; None where it has none."""
    begin = getattr(scheduler, "begin_index", None) or 0
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) < begin + steps:
        return None
    return [float(sigma) for sigma in sigmas[begin : begin + steps]]
