"""Measuring, in one uncached run, what TeaCache- and MagCache-style policies need to know of a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from cache_dit.config.base import bad_value, check_choice, check_integer
from cache_dit.config.cache import DBCacheConfig
from cache_dit.config.prune import DBPruneConfig
from cache_dit.engine.attach import wrappers
from cache_dit.engine.attach.transformer import TransformerState
from cache_dit.engine.forward.branch_cache import ChainForward
from cache_dit.engine.forward.observe import ObserverRole, observed_module
from cache_dit.engine.policies.calibration import PolicyCalibration, fit_polynomial, magnitude_ratios
from cache_dit.engine.state.measure import read_back, relative_l1_sums
from cache_dit.engine.subclass import state_of, unwrap, wrap
from cache_dit.errors import ConfigError
from cache_dit.planning.runs import Observer, observable, observe


@dataclass
class _Trail:
    """What one branch's steps looked like; numbers stay on their device until the run is over."""

    steps: list[int] = field(default_factory=list)
    norms: list[torch.Tensor] = field(default_factory=list)
    #: For each step but the first: Σ|difference| and Σ|previous| of the modulated input, and of the output.
    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    latest: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, made: ChainForward, result: torch.Tensor | None) -> None:
        """Take note of a step."""
        self.steps.append(made.call.step)
        residual, modulated = made.snapshot_hidden, made.probe
        self.norms.append(torch.linalg.vector_norm(residual, dim=-1, dtype=torch.float32).mean())
        if modulated is None or result is None:
            return
        before, self.latest = self.latest, (modulated.detach().clone(), result.detach().clone())
        if before is not None and all(map(_same_shape, before, self.latest)):
            self.inputs.append(torch.stack(relative_l1_sums(before[0], modulated)))
            self.outputs.append(torch.stack(relative_l1_sums(before[1], result)))


def _same_shape(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape


class _Trails(Observer):
    """Keeps the steps of the first request's first chain, by branch."""

    def __init__(self, state: TransformerState) -> None:
        super().__init__(state)
        self._by_cache: dict[Any, _Trail] = {}

    def see(self, made: ChainForward, output: torch.Tensor | None) -> None:
        """Take note of a step."""
        if self._branch(made.cache) is not None:
            self._by_cache.setdefault(made.cache, _Trail()).add(made, output)

    def _branch(self, cache: Any) -> Hashable:
        """The branch that a cache is of now; None: it is of another request or chain, or of a second pass."""
        caches = {} if self.session is None else self.session.caches
        return next((branch for (branch, *place), known in caches.items() if known is cache and place == [0, 0]), None)

    @property
    def trails(self) -> dict[Hashable, _Trail]:
        """What was seen, by branch."""
        return {self._branch(cache): trail for cache, trail in self._by_cache.items()}

    @property
    def num_inference_steps(self) -> int:
        """How many steps the run was asked for, where a pipeline knows it, or made, where these are fewer."""
        session = self.session
        made = 1 + max(trail.steps[-1] for trail in self._by_cache.values())
        asked = None if session is None or session.counts_down else session.handle.steps(session.num_inference_steps)
        return made if asked is None else min(asked, made)


def calibrate(
    pipe_or_transformer: Any,
    run: Callable[[], Any],
    *,
    policy: str = "magcache",
    path: str | os.PathLike[str] | None = None,
    degree: int = 4,
) -> PolicyCalibration:
    """Make one uncached run and fit what a policy needs to know of the model.

    For ``"magcache"``: the ratio of each step's residual magnitude to the one before it (arXiv 2506.09045). For
    ``"teacache"``: the polynomial that maps the relative change of the first block's modulated input to that of the
    transformer's output (arXiv 2411.19108). The residual is that of the middle blocks, of the first chain where there
    are several: put the cache on with the Fn and Bn that you will use. Where no cache is on, one with Fn = 1 is put on
    for the run.

    Args:
        pipe_or_transformer: a pipeline with one transformer, or the transformer.
        run: makes one run of as many steps, with the scheduler and the guidance that the calibration is for, e.g.
            ``lambda: pipe(prompt, num_inference_steps=28)``. No step of it is cached.
        policy: whose calibration to make.
        path: where to save it as JSON; None: nowhere.
        degree: the degree of TeaCache's polynomial.

    Returns:
        The calibration, for ``DBCacheConfig(policy=…, policy_calibration=…)``; that takes the path as well.

    Raises:
        ConfigError: if there is no transformer or more than one, ``run`` never called it, or the steps it made are too
            few for the fit.
    """
    check_choice("policy", policy, choices=("magcache", "teacache"))
    check_integer("degree", degree, minimum=0)
    if not callable(run):
        raise bad_value("run", run, "a function that makes one run, e.g. lambda: pipe(prompt, num_inference_steps=28)")
    config = DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.0)
    several = "put the cache on the pipeline, then calibrate each, e.g. cache_dit.calibrate(pipe.transformer_2, run)"
    with observable(pipe_or_transformer, config, several=several) as state:
        if any(isinstance(one.cache, DBPruneConfig) or one.cache.decision == "sample" for one in state.options):
            raise ConfigError("calibrate looks at whole steps: enable a DBCacheConfig with decision='mean' first")
        seen = _Trails(state)
        with _seeing_modulated(state) if policy == "teacache" else contextlib.nullcontext():
            observe(seen, run)
        calibration = _fitted(seen, policy, degree)
    if path is not None:
        calibration.save(path)
    return calibration


@contextlib.contextmanager
def _seeing_modulated(state: TransformerState) -> Iterator[None]:
    """The first chain's modulated input is seen inside."""
    chain = state.chains[0][0]
    module = observed_module(chain)
    known = state_of(module) is not None
    if not known:
        wrap(module, wrappers.observed_module, ObserverRole(chain, module))
    try:
        yield
    finally:
        if not known:
            unwrap(module)


def _fitted(seen: _Trails, policy: str, degree: int) -> PolicyCalibration:
    """The calibration that a run makes."""
    branches: dict[Any, Any] = {}
    fits: dict[Any, float] = {}
    for branch, trail in seen.trails.items():
        if policy == "magcache":
            branches[branch] = _ratios_by_step(seen, trail)
        else:
            branches[branch], fits[branch] = fit_polynomial(_ratios(trail.inputs), _ratios(trail.outputs), degree)
    return PolicyCalibration(
        policy=policy,
        model_class=seen.state.model_class,
        num_inference_steps=seen.num_inference_steps,
        scheduler=None if seen.scheduler is None else type(seen.scheduler).__name__,
        branches=branches,
        r_squared=fits,
    )


def _ratios_by_step(seen: _Trails, trail: _Trail) -> list[float]:
    """A ratio for each step of the request: 1 where the branch was left out, so that products stay right."""
    length = max(seen.num_inference_steps, *(1 + trail.steps[-1] for trail in seen.trails.values()))
    ratios = [1.0] * length
    for step, ratio in zip(trail.steps, magnitude_ratios(read_back(torch.stack(trail.norms))), strict=True):
        ratios[step] = ratio
    return ratios


def _ratios(sums: list[torch.Tensor]) -> list[float]:
    if not sums:
        return []
    packed = torch.stack(sums)
    return read_back(packed[:, 0] / packed[:, 1])
