"""What is kept of computed steps, and what is predicted from it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from cache_dit.engine.forward.run import Prediction
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.predictors.base import Predictor
from cache_dit.engine.state.history import History

if TYPE_CHECKING:
    from cache_dit.engine.forward.stepwise import Call


class Past:
    """What one lane, or one sample or block of it, keeps of computed steps, and the predictions from it.

    Args:
        options: the chain's options.
        watch: whether its health will be asked for.
        predictor: what predicts H and E; None: what the options say.
    """

    def __init__(self, options: ChainOptions, *, watch: bool = False, predictor: Predictor | None = None) -> None:
        own = None if predictor is None else (predictor, predictor)
        self.hidden_predictor, self.encoder_predictor = own or options.predictors()
        self.hidden = options.history(self.hidden_predictor, watch=watch)
        self.encoder = options.history(self.encoder_predictor, watch=watch)
        self.coordinate = "step" if options.calibrator is None else options.calibrator.coordinate
        self.unit = self.coordinate  # what the times at hand are counted in

    def keep(self, call: Call, hidden: torch.Tensor, encoder: torch.Tensor | None) -> None:
        """Append a step's snapshots."""
        unit, time = self._time(call)
        if self.hidden.times and (unit != self.unit or time < self.hidden.times[-1]):
            self.clear()  # what was kept lies elsewhere
        self.unit = unit
        self.hidden.append(time, hidden)
        if encoder is None:
            self.encoder.clear()
        else:
            self.encoder.append(time, encoder)

    def predictions(self, call: Call, *, summed: bool) -> tuple[Prediction | None, Prediction | None]:
        """What is predicted for H and for E."""
        if not self.hidden.times:
            return None, None
        unit, time = self._time(call)
        encoder = self.encoder
        alike = self.encoder_predictor is self.hidden_predictor and encoder.times == self.hidden.times
        if unit != self.unit:
            found = other = [1.0]  # what is kept lies elsewhere: the newest of it is reused
        else:
            found = other = weights(self.hidden_predictor, self.hidden, time)
            if encoder.times and (not alike or self.encoder_predictor.needs_gram):
                other = weights(self.encoder_predictor, encoder, time)
        hidden = Prediction(self.hidden, found, summed=summed)
        return hidden, Prediction(encoder, other, summed=summed) if encoder.times else None

    def _time(self, call: Call) -> tuple[str, float]:
        """A step's place, and on which coordinate: its number where the one asked for is not known."""
        time = call.times.get(self.coordinate)
        return ("step", float(call.step)) if time is None else (self.coordinate, time)

    def prefetch(self) -> None:
        """Let what is kept elsewhere travel while the model computes: it may be needed in this step."""
        self.hidden.prefetch(len(self.hidden))
        self.encoder.prefetch(len(self.encoder))

    def health(self) -> torch.Tensor | None:
        """A number that is not finite where a snapshot is not; None where nothing is kept, or nobody watches."""
        hidden, encoder = self.hidden.health(), self.encoder.health()
        if hidden is None or encoder is None:
            return hidden
        return hidden + encoder.to(hidden)

    def clear(self) -> None:
        """Forget everything."""
        self.hidden.clear()
        self.encoder.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.hidden.nbytes + self.encoder.nbytes

    @property
    def bytes_by_device(self) -> dict[str, int]:
        """Bytes of snapshots on each device."""
        return Counter(self.hidden.bytes_by_device) + Counter(self.encoder.bytes_by_device)

    def __len__(self) -> int:
        return len(self.hidden)


def weights(predictor: Predictor, history: History, time: float) -> list[float]:
    """The coefficients of a history's snapshots in the prediction for a time."""
    if predictor.needs_gram:
        return predictor.coefficients(history.times, time, history.gram())
    return predictor.coefficients(history.times, time)
