"""Noticing that what conditions a run changed in the middle of it: a control image, a ControlNet's residuals, a text.

No tensor is compared in full. A tensor that is the same object, unwritten, is the same. One that had been the same
object from call to call and is another one now has changed. One that is made anew at each step, as a ControlNet's
residuals are, changes a little all the time: of such a tensor a sample of a few thousand values is compared with that
of the last computed step. Where the step is measured, the read that decides it brings that number too. Elsewhere it is
looked at at once where the tensor lies on the host; on an accelerator it travels while the step computes, and is
looked at when the next one begins. Text states that are made anew at each call are not looked at.

A change begins a new history: nothing that was kept before it predicts anything after it.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from cache_dit.engine.forward.lora import AdapterReader
from cache_dit.engine.state.history import alike
from cache_dit.engine.state.measure import HostCopy, averaged

#: How many values of a tensor are compared at most.
SAMPLE = 4096


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


# What the words of an argument's name say of it; the first of these that says anything decides.
_TIMES = _words("t time timestep timesteps temb sigma sigmas guidance")
_PLACES = _words("ids indices indexes rotary rope pos coords cache caches")
_LATENTS = _words("tokens")  # of models that take several latents
_CONDITIONS = _words("control controlnet image images img cond condition conditions conditioning adapter hint pose")
_CLEAN = _words("latents clean")  # what the model is shown beside its noisy latent
_TEXTS = _words("text txt prompt caption cap pooled encoder llama3 t5")
_TEXT_NAMES = _words("context attention_mask")
_MASKS = _words("mask masks")


def conditions_of(given: Mapping[str, Any], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The tensors of a call that condition the run, by their place.

    Args:
        given: the call's arguments by name.
        names: the names of those that do; see ``is_condition``.
    """
    found: dict[str, torch.Tensor] = {}
    for name in names:
        value = given[name]
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, (Mapping, list, tuple)):
            found.update(_leaves(name, value))
    return found


@functools.cache
def is_condition(name: str) -> bool:
    """Whether an argument of this name conditions the run.

    Those that hold a latent, a time, a place (ids, rotary embeddings), a text state or a key-value cache do not; all
    others do, in lists and dicts too.
    """
    words = _words(name.replace("_", " "))
    if name == "x" or _of_the_step(name) or words & _LATENTS:
        return False
    if words & (_CONDITIONS | _CLEAN):
        return True
    return not (words & _TEXTS or name in _TEXT_NAMES or "hidden_states" in name)


@functools.cache
def is_text(name: str) -> bool:
    """Whether an argument of this name holds text states, pooled ones, or a mask."""
    words = _words(name.replace("_", " "))
    if is_condition(name) or _of_the_step(name) or words & _LATENTS:
        return False
    return bool(words & (_TEXTS | _MASKS)) or name in _TEXT_NAMES


@functools.cache
def _of_the_step(name: Any) -> bool:
    """Whether a name says that it is a time or a place."""
    return isinstance(name, str) and bool(_words(name.replace("_", " ")) & (_TIMES | _PLACES))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not _of_the_step(key):
                yield from _leaves(f"{path}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(f"{path}.{index}", item)


class _Seen:
    """One conditioning tensor as the latest call showed it, and its sample at the last computed step."""

    __slots__ = ("form", "sample", "stays", "tensor", "version")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = weakref.ref(tensor)
        self.version = _version(tensor)
        self.form = _form(tensor)
        #: How many calls in a row it has been the same object, unwritten.
        self.stays = 0
        self.sample: torch.Tensor | None = None

    def changes(self, tensor: torch.Tensor) -> bool:
        """Take note of what stands in its place now. Whether that is certainly not what it was."""
        if self.tensor() is tensor and self.version == _version(tensor):
            self.stays += 1
            return False
        form = _form(tensor)
        changed = self.stays > 0 or self.form != form
        self.tensor, self.version, self.form, self.stays = weakref.ref(tensor), _version(tensor), form, 0
        return changed

    @property
    def trusted(self) -> bool:
        """Whether identity says it all: not of an inference tensor, since nobody counts what is written into it."""
        return self.stays > 0 and self.version is not None


class _Text:
    """A text state, in whatever lists and dicts, as the latest call showed it: the very tensors, and what was written.

    Args:
        given: what the call held; None where it held nothing.
    """

    __slots__ = ("moved", "parts", "stays", "versions")

    def __init__(self, given: Any) -> None:
        self.take(_tensors(given))
        #: How many calls in a row it has been the same, and the call at which it became another without having stayed.
        self.stays = 0
        self.moved: int | None = None

    def take(self, tensors: Sequence[torch.Tensor]) -> None:
        self.parts = [weakref.ref(tensor) for tensor in tensors]
        self.versions = [None if tensor.is_inference() else tensor._version for tensor in tensors]

    def changes(self, given: Any, step: int) -> int | None:
        """Take note of what stands in its place now.

        Returns:
            The step at which it became what it is, if that is news; −1 where it is made anew at each call.
        """
        tensors = (given,) if isinstance(given, torch.Tensor) else _tensors(given)
        same = len(tensors) == len(self.parts)
        if same:
            for tensor, part, version in zip(tensors, self.parts, self.versions, strict=True):
                if part() is not tensor or version != (None if tensor.is_inference() else tensor._version):
                    same = False
                    break
        if same:
            self.stays += 1
            since, self.moved = self.moved, None
            return since  # it stays: so that was a change
        self.take(tensors)
        stayed, self.stays = self.stays, 0
        if stayed:
            return step
        if self.moved is not None:
            return _ANEW
        self.moved = step
        return None


_ANEW = -1


class ConditioningMonitor:
    """What conditions one branch of a request, as its calls have shown it."""

    def __init__(self) -> None:
        #: By place, what the calls have shown; None before the first.
        self.seen: dict[str, _Seen] | None = None
        #: Whether there are text states to look at: some that are not made anew at each call.
        self.reads = False
        #: What acts of the model's adapters; see ``AdapterReader``.
        self.adapters: list[Any] = []
        #: The step in which a jump was measured that travels to the host.
        self.pending: tuple[int, HostCopy] | None = None
        self._texts: dict[str, _Text | None] | None = None  # by name; None: it is made anew at each call
        #: The names of the text states of its latest call.
        self.names: Sequence[str] = ()
        self._samples: dict[str, torch.Tensor] = {}  # of this call

    def changed(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Take note of a call's tensors. Whether one of them is certainly not what it was at the call before."""
        self._samples.clear()
        before = self.seen
        if before is not None and before.keys() == tensors.keys():
            return any([before[path].changes(tensor) for path, tensor in tensors.items()])
        self.seen = {path: _Seen(tensor) for path, tensor in tensors.items()}
        return before is not None

    def text_changed(self, given: Mapping[str, Any], names: Sequence[str], step: int) -> int | None:
        """Take note of a call's text states.

        Args:
            given: the call's arguments.
            names: the names of those that hold text states; the same object where they are the same.
            step: the call's step.

        Returns:
            The step at which they became what they are, if that is news. That is the call before this one where one
            that was another there than at the very first call turns out to stay.
        """
        if self._texts is None:
            self._texts, self.names = {name: _Text(given[name]) for name in names}, names
            self.reads = bool(names)
            return None
        if names is not self.names:
            self.names = names
            for name in names:
                if name not in self._texts:  # it was left out until now
                    self._texts[name] = absent = _Text(None)
                    absent.stays = 1
        since: int | None = None
        for name, text in self._texts.items():
            if text is not None and (step_of := text.changes(given.get(name), step)) is not None:
                if step_of == _ANEW:
                    self._texts[name] = None
                elif since is None or step_of > since:
                    since = step_of
        self.reads = any(self._texts.values())
        return since

    def adapted(self, reader: AdapterReader, given: Mapping[str, Any]) -> bool:
        """Take note of which adapters act in a call. Whether they are not what they were at the call before."""
        now = reader.read(given)
        if now == self.adapters:
            return False
        self.adapters = reader.copied(now)
        return True

    def look(
        self, tensors: Mapping[str, torch.Tensor], step: int, group: Any, samples: int | None = None
    ) -> list[float] | None:
        """The jump of a step in which nothing else is read: at once where it lies on the host, else one step late.

        Args:
            tensors, samples: see ``jump``.
            step: the step.
            group: the process group that decides together, or None.

        Returns:
            One number, or one for each sample; None where there is none, or where it travels, and is
            ``pending``.
        """
        jump = self.jump(tensors, samples)
        if jump is None:
            return None
        copy = HostCopy(averaged(jump.reshape(-1), group))
        if copy.at_hand:
            return copy.arrived()
        if self.pending is None or samples is not None:
            self.pending = step, copy
        return None

    def jump(self, tensors: Mapping[str, torch.Tensor], samples: int | None = None) -> torch.Tensor | None:
        """By how much a tensor that is made anew at each call differs from the last computed step's, at most.

        Args:
            tensors: those of this call.
            samples: the number of samples, to tell them apart: tensors of this length count for each by itself.

        Returns:
            The largest relative L1 distance, in a tensor without dimensions on their device, or with one for the
            samples; infinite where something was written into an inference tensor. None where all are as they were.
            Nothing is read back.
        """
        self._take_samples(tensors)
        made_anew: list[_Pair] = []
        kept: list[_Pair] = []
        for path, now in self._samples.items():
            seen = (self.seen or {})[path]
            if seen.sample is not None and seen.sample.shape == now.shape and seen.sample.device == now.device:
                (kept if seen.stays else made_anew).append((seen.sample, now))
        if samples is None:
            distances = [_largest_distance(pairs) for pairs in _by_device(made_anew)]
        else:
            distances = [_distances(*pair, samples) for pair in made_anew]
        distances += [_infinite_if_other(*pair, samples) for pair in kept]
        if not distances:
            return None
        return torch.stack([distance.to(distances[0].device) for distance in distances]).amax(0)

    def computed(self, tensors: Mapping[str, torch.Tensor], rows: Sequence[int] | None = None, batch: int = 1) -> None:
        """Keep samples of a computed step, of what identity does not tell.

        Args:
            tensors: those of this call.
            rows: the samples of the batch that computed; None: all.
            batch: the number of samples; tensors of another length belong to all of them, and are kept.
        """
        self._take_samples(tensors)
        for path, seen in (self.seen or {}).items():
            now, before = self._samples.get(path), seen.sample
            partly = rows is not None and now is not None and now.shape[:1] == (batch,)
            if partly and now is not None and alike(before, now) and before is not None:
                places = torch.tensor(rows, device=now.device)
                now = before.index_copy(0, places, now[places])
            seen.sample = now
        self._samples = {}

    def _take_samples(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for path, seen in (self.seen or {}).items():
            if not seen.trusted and path not in self._samples and (sample := _sample(tensors[path])) is not None:
                self._samples[path] = sample

    @property
    def nbytes(self) -> int:
        """Bytes of the samples."""
        return sum(0 if seen.sample is None else seen.sample.nbytes for seen in (self.seen or {}).values())


def _tensors(value: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of an argument, however deep they lie."""
    return tuple(tensor for _, tensor in _leaves("", value))


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _sample(tensor: torch.Tensor) -> torch.Tensor | None:
    """Some values of a tensor, evenly spread over all its dimensions, in float32; None where it has none at hand."""
    if tensor.numel() == 0 or tensor.is_meta or tensor.layout is not torch.strided:
        return None
    values = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    return values[_every_so_many(values.shape)].to(torch.float32, copy=True)


@functools.lru_cache(maxsize=1024)
def _every_so_many(shape: Sequence[int]) -> tuple[slice, ...]:
    """Where a sample of a tensor of this shape is taken: the longest dimension is halved until few values are left.

    The first one, the batch, only where it is the only one.
    """
    strides, lengths = [1] * len(shape), list(shape)
    while math.prod(lengths) > SAMPLE:
        others = range(1, len(shape)) if max(lengths[1:], default=1) > 1 else range(1)
        longest = max(others, key=lengths.__getitem__)
        strides[longest] *= 2
        lengths[longest] = -(-shape[longest] // strides[longest])
    return tuple(slice(None, None, stride) for stride in strides)


_Pair = tuple[torch.Tensor, torch.Tensor]


def _by_device(pairs: list[_Pair]) -> list[list[_Pair]]:
    found: dict[torch.device, list[_Pair]] = {}
    for pair in pairs:
        found.setdefault(pair[0].device, []).append(pair)
    return list(found.values())


def _largest_distance(pairs: list[_Pair]) -> torch.Tensor:
    """The largest of Σ|now − before| / Σ|before|; a few kernels for all pairs of one device together."""
    before, now = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    changes = torch.stack(torch._foreach_norm(torch._foreach_sub(now, before), 1))
    sizes = torch.stack(torch._foreach_norm(before, 1))
    return (changes / sizes.clamp_min(1e-12)).max()


def _distances(before: torch.Tensor, now: torch.Tensor, samples: int) -> torch.Tensor:
    """Σ|now − before| / Σ|before| of each sample, or the one of all for each."""
    change, size = (_rows(part.abs(), samples).sum(1) for part in (now - before, before))
    return (change / size.clamp_min(1e-12)).expand(samples)


def _infinite_if_other(before: torch.Tensor, now: torch.Tensor, samples: int | None) -> torch.Tensor:
    distances = torch.where(_rows(now != before, samples).any(1), math.inf, 0.0)
    return distances[0] if samples is None else distances.expand(samples)


def _rows(values: torch.Tensor, samples: int | None) -> torch.Tensor:
    """A row for each sample, or one for all."""
    return values.reshape(values.shape[0] if values.shape[:1] == (samples,) else 1, -1)
