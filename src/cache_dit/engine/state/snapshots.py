"""What is kept of computed steps, and what is predicted from it."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from cache_dit.engine.options import ChainOptions
from cache_dit.engine.predictors.base import Predictor
from cache_dit.engine.state.history import History, alike


class Prediction(NamedTuple):
    """What a cached step adds to a stream, or puts in its place.

    Args:
        fits: whether a stream looks like the snapshots.
        over: the stream after the skipped blocks, from what it is before them (and where to write it, or None).
        alone: the stream after the skipped blocks, where the snapshots are of the stream itself.
    """

    fits: Callable[[Any], bool]
    over: Callable[..., torch.Tensor]
    alone: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, history: History, coefficients: list[float], *, summed: bool) -> Prediction:
        """The prediction with a weight for each of the newest snapshots.

        Args:
            history: the snapshots.
            coefficients: the weights.
            summed: whether to sum them now: compiled code must not see weights, which change at every step. Else the
                sum is taken together with the stream that it is added to, in one pass over memory.
        """
        if not summed:
            return cls(history.fits, partial(history.predict, coefficients), partial(_owned, history, coefficients))
        tensor = history.predict(coefficients)
        return cls(partial(alike, tensor), partial(torch.add, tensor), tensor.clone)


def _owned(history: History, coefficients: list[float]) -> torch.Tensor:
    return history.predict(coefficients).clone()


#: How many diffs are remembered, and how many times the largest of them one must be to leap.
RECENT, LEAP = 4, 4.0


def leaps(recent: deque[float], diff: float) -> bool:
    """Whether a first block's diff is far above those before it: what conditions the run has changed unseen.

    It is where it is more than ``LEAP`` times the largest of the last ``RECENT`` ones. The diffs of a run grow with the
    steps since the last computed one, and toward the end of its schedule, but none was above 2.3 times those before it
    in runs of 4 to 50 steps of the demo model, and another prompt is 10 to 70 times. One that leaps is not remembered.

    Args:
        recent: the diffs before it; this one is added.
        diff: the diff.
    """
    if recent and diff > LEAP * max(recent):
        return True
    if diff < math.inf:
        recent.append(diff)
    return False


class Snapshots:
    """What a branch of a chain, or a sample or block of it, keeps of computed steps, and the predictions from it.

    The times of a step are a mapping: its number under ``"step"``, and its place on other coordinates that are known.

    Args:
        options: the chain's options.
        watch: whether its health will be asked for.
        predictor: what predicts H and E; None: what the options say.
    """

    def __init__(self, options: ChainOptions, *, watch: bool = False, predictor: Predictor | None = None) -> None:
        own = None if predictor is None else (predictor, predictor)
        self.hidden_predictor, self.encoder_predictor = own or options.predictors()
        cache = options.cache
        self.hidden = History(self.hidden_predictor.history, device=cache.cache_device, dtype=cache.cache_dtype)
        self.encoder = History(self.encoder_predictor.history, device=cache.cache_device, dtype=cache.cache_dtype)
        self.coordinate = options.coordinate
        self.unit = self.coordinate  # what the times at hand are counted in
        self.watch = watch
        #: A number a snapshot that is not finite where it is not, and how many of the newest nobody has read yet.
        self._norms: list[torch.Tensor] = []
        self.unread = 0
        #: The step that the newest are of, and why there are none where there are none.
        self.newest = -1.0
        self.missing = "no_snapshot"
        #: Whether the snapshots lie where they must be brought back from.
        self.travels = cache.cache_device is not None

    def keep(self, times: Mapping[str, float], hidden: torch.Tensor, encoder: torch.Tensor | None) -> bool:
        """Append a step's snapshots; says whether other bytes may be held than before."""
        time = times.get(self.coordinate)
        unit = self.coordinate if time is not None else "step"
        time = times["step"] if time is None else time
        known = self.hidden.times
        if known and (unit != self.unit or time < known[-1]):
            self.clear()  # what was kept lies elsewhere
        self.unit = unit
        self.newest, self.missing = times["step"], "no_snapshot"
        again = bool(known) and known[-1] == time
        grew = self.hidden.append(time, hidden)
        if encoder is None:
            self.encoder.clear()
        else:
            grew = self.encoder.append(time, encoder) or grew
        if self.watch:
            both = [hidden] if encoder is None else [hidden, encoder]
            if again:
                del self._norms[-len(both) :]
            self._norms += torch._foreach_norm(both, 2, dtype=torch.float32 if hidden.dtype.itemsize < 4 else None)
            del self._norms[: -len(both) * len(known)]  # of what is not kept any more
            self.unread = min(self.unread + len(both), len(self._norms))
        return grew

    def predictions(self, times: Mapping[str, float], *, summed: bool) -> tuple[Prediction | None, Prediction | None]:
        """What is predicted for H and for E."""
        if not self.hidden.times:
            return None, None
        found, other = self.coefficients(times)
        hidden = Prediction.of(self.hidden, found, summed=summed)
        return hidden, Prediction.of(self.encoder, other, summed=summed) if self.encoder.times else None

    def over(
        self, found: list[float], other: list[float], hidden: Any, encoder: Any
    ) -> tuple[torch.Tensor, Any] | None:
        """H and E after the skipped blocks, where what is kept was added to them; None: it does not fit.

        Args:
            found, other: the weights, as ``coefficients`` gives them.
            hidden, encoder: the streams before the blocks.
        """
        if self.hidden.kind != (hidden.shape, hidden.dtype, hidden.device):
            return None
        if not self.encoder.times:
            return self.hidden.predict(found, hidden), encoder
        if encoder is None:
            return self.hidden.predict(found, hidden), _owned(self.encoder, other)
        if self.encoder.kind != (encoder.shape, encoder.dtype, encoder.device):
            return None
        if found is other and self.hidden.plain and self.encoder.plain and not torch.is_grad_enabled():
            return self.hidden.predict_with(self.encoder, found, hidden, encoder)
        return self.hidden.predict(found, hidden), self.encoder.predict(other, encoder)

    def coefficients(self, times: Mapping[str, float]) -> tuple[list[float], list[float]]:
        """The weights of what is kept of H and of E; where one set serves both, it is the same list."""
        time = times.get(self.coordinate)
        unit = self.coordinate if time is not None else "step"
        time = times["step"] if time is None else time
        if unit != self.unit:
            newest = [1.0]  # what is kept lies elsewhere: the newest of it is reused
            return newest, newest
        found = weights(self.hidden_predictor, self.hidden, time)
        alike = self.encoder_predictor is self.hidden_predictor and self.encoder.times == self.hidden.times
        if not self.encoder.times or (alike and not self.encoder_predictor.needs_gram):
            return found, found
        return found, weights(self.encoder_predictor, self.encoder, time)

    def prefetch(self) -> None:
        """Let what is kept elsewhere travel while the model computes: it may be needed in this step."""
        self.hidden.prefetch(len(self.hidden))
        self.encoder.prefetch(len(self.encoder))

    def since(self, step: float) -> None:
        """What conditions the run became another at a step: forget what was kept before it."""
        self.missing = "conditioning"
        if self.newest < step:
            self.clear()
        elif len(self.hidden.times) > 1:
            self.hidden.keep_newest()
            self.encoder.keep_newest()
            del self._norms[: -2 if self.encoder.times else -1]
            self.unread = min(self.unread, len(self._norms))

    def clear(self) -> None:
        """Forget everything."""
        self.hidden.clear()
        self.encoder.clear()
        self._norms.clear()
        self.unread = 0

    @property
    def health(self) -> list[torch.Tensor]:
        """Numbers that are not finite where a snapshot is not, of those that nobody has read yet."""
        return self._norms[-self.unread :] if self.unread else []

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.hidden.nbytes + self.encoder.nbytes

    @property
    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of snapshots on each device."""
        return Counter(self.hidden.bytes_by_device) + Counter(self.encoder.bytes_by_device)

    def __len__(self) -> int:
        return len(self.hidden.times)


def weights(predictor: Predictor, history: History, time: float) -> list[float]:
    """The coefficients of a history's snapshots in the prediction for a time."""
    if predictor.needs_gram:
        return predictor.coefficients(history.times, time, history.gram())
    return predictor.coefficients(history.times, time)
