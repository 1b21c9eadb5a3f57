"""Toy transformers for every forward pattern, and what the engine's tests do with them: plans, runs, counted blocks."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import cache_dit
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern

WIDTH, TOKENS, TEXT = 8, 6, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers that depend on the shape and the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- blocks


class PairBlock(nn.Module):
    """Reads H and E, mixes them; ``give`` makes its result of the new ones."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.give = give
        self.hidden, self.encoder = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, scale: float = 1.0) -> Any:
        text, image = encoder_hidden_states.mean(1, keepdim=True), hidden_states.mean(1, keepdim=True)
        hidden = hidden_states + scale * torch.tanh(self.hidden(hidden_states) + text)
        encoder = encoder_hidden_states + scale * torch.tanh(self.encoder(encoder_hidden_states) + image)
        return self.give(hidden, encoder)


class OptionalPairBlock(PairBlock):
    """Reads E where there is one; where there is none it gives None for it."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, scale: float = 1.0) -> Any:
        if encoder_hidden_states is not None:
            return super().forward(hidden_states, encoder_hidden_states, scale)
        return hidden_states + scale * torch.tanh(self.hidden(hidden_states)), None


class SoloBlock(nn.Module):
    """Reads H alone; ``give`` makes its result of the new H and of an E of its own."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any] = lambda h, e: h) -> None:
        super().__init__()
        self.give = give
        self.hidden, self.encoder = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> Any:
        hidden = hidden_states + scale * torch.tanh(self.hidden(hidden_states))
        return self.give(hidden, torch.tanh(self.encoder(hidden[:, :TEXT])))


class InPlacePair(PairBlock):
    """Writes what it makes of H, and of E where ``writes_encoder``, into what it was given."""

    writes_encoder = True

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, scale: float = 1.0) -> Any:
        text = encoder_hidden_states.mean(1, keepdim=True)
        hidden_states += scale * torch.tanh(self.hidden(hidden_states) + text)
        if self.writes_encoder:
            encoder_hidden_states += scale * torch.tanh(self.encoder(encoder_hidden_states))
        return self.give(hidden_states, encoder_hidden_states)


class InPlaceSolo(SoloBlock):
    """Writes what it makes of H into what it was given."""

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> Any:
        hidden_states += scale * torch.tanh(self.hidden(hidden_states))
        return self.give(hidden_states, torch.tanh(self.encoder(hidden_states[:, :TEXT])))


class Form(NamedTuple):
    """A way in which blocks return what they made: how one builds it, and how the model's loop reads it.

    Args:
        pattern: the pattern that it belongs to.
        give: the block's result, of H and E.
        take: (H, E) for the next block, of the result and of the E that went in.
    """

    pattern: ForwardPattern
    give: Callable[[Tensor, Tensor], Any]
    take: Callable[[Any, Any], tuple[Tensor, Any]]

    def block(self) -> nn.Module:
        """A block of this form."""
        return SoloBlock(self.give) if self.pattern.Forward_H_only else PairBlock(self.give)


def without_encoder(hidden: Tensor, encoder: Any) -> Tensor:
    """The H of a result whose E must be None, on a skipped step too."""
    assert encoder is None
    return hidden


P = ForwardPattern
FORMS: dict[str, Form] = {
    "0": Form(P.Pattern_0, lambda h, e: (h, e), lambda out, e: out),
    "0 (H, None)": Form(P.Pattern_0, lambda h, e: (h, None), lambda out, e: (without_encoder(*out), e)),
    "1": Form(P.Pattern_1, lambda h, e: (e, h), lambda out, e: out[::-1]),
    "1 (None, H)": Form(P.Pattern_1, lambda h, e: (None, h), lambda out, e: (without_encoder(*out[::-1]), e)),
    "2": Form(P.Pattern_2, lambda h, e: h, lambda out, e: (out, e)),
    "2 (H,)": Form(P.Pattern_2, lambda h, e: (h,), lambda out, e: (out[0], e)),
    "3": Form(P.Pattern_3, lambda h, e: h, lambda out, e: (out, e)),
    "3 (H,)": Form(P.Pattern_3, lambda h, e: (h,), lambda out, e: (out[0], e)),
    "3 (H, None)": Form(P.Pattern_3, lambda h, e: (h, None), lambda out, e: (without_encoder(*out), e)),
    "4": Form(P.Pattern_4, lambda h, e: (h, e), lambda out, e: out),
    "4 H": Form(P.Pattern_4, lambda h, e: h, lambda out, e: (out, e)),
    "5": Form(P.Pattern_5, lambda h, e: (e, h), lambda out, e: out[::-1]),
    "5 (None, H)": Form(P.Pattern_5, lambda h, e: (None, h), lambda out, e: (without_encoder(*out[::-1]), e)),
}


# -- models


class Toy(nn.Module):
    """A transformer over one block list, or over several of one form.

    Args:
        form: a name in ``FORMS``.
        depths: the number of blocks of each list; the first is ``blocks``, the others ``blocks_1``, ….
        keywords: call the blocks by keyword.
    """

    def __init__(self, form: str = "0", depths: Sequence[int] = (5,), *, keywords: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.keywords = FORMS[form], keywords
        self.enter, self.leave = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.names = ["blocks", *(f"blocks_{i}" for i in range(1, len(depths)))]
        for name, depth in zip(self.names, depths, strict=True):
            setattr(self, name, nn.ModuleList(self.form.block() for _ in range(depth)))
        self.requires_grad_(False)

    @property
    def lists(self) -> list[nn.ModuleList]:
        """Its block lists."""
        return [getattr(self, name) for name in self.names]

    @property
    def all_blocks(self) -> list[nn.Module]:
        """Its blocks, in call order."""
        return [block for blocks in self.lists for block in blocks]

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None) -> Tensor:
        hidden = self.enter(hidden_states) if timestep is None else self.enter(hidden_states * (1 + timestep))
        encoder = encoder_hidden_states
        for block in self.all_blocks:
            hidden, encoder = self.step(block, hidden, encoder)
        result: Tensor = self.leave(hidden)
        return result if encoder is None else result + encoder.mean(1, keepdim=True)

    def step(self, block: nn.Module, hidden: Tensor, encoder: Any) -> tuple[Tensor, Any]:
        """What the loop does with one block."""
        return self.form.take(self.call(block, hidden, encoder), encoder)

    def call(self, block: nn.Module, hidden: Tensor, encoder: Any) -> Any:
        """Call a block, by position or by keyword."""
        given = {"hidden_states": hidden, "encoder_hidden_states": encoder}
        if self.form.pattern.Forward_H_only:
            del given["encoder_hidden_states"]
        return block(**given, scale=0.5) if self.keywords else block(*given.values(), 0.5)

    def adapter(self, **options: Any) -> BlockAdapter:
        """Its description."""
        return BlockAdapter(
            **{"transformer": self, "blocks": self.lists, "forward_pattern": self.form.pattern, **options}
        )


class OptionalToy(Toy):
    """A toy of pattern 0 that may be called without E."""

    def __init__(self) -> None:
        super().__init__("0")
        for block in self.blocks:
            block.__class__ = OptionalPairBlock


class Joined(nn.Module):
    """Two block lists; the second reads both streams as one: text first (``eh``) or image first (``he``)."""

    def __init__(self, join: str, depths: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.join = join
        self.double_blocks = nn.ModuleList(FORMS["1"].block() for _ in range(depths[0]))
        self.single_blocks = nn.ModuleList(FORMS["3"].block() for _ in range(depths[1]))
        self.leave = nn.Linear(WIDTH, WIDTH)
        self.requires_grad_(False)

    @property
    def all_blocks(self) -> list[nn.Module]:
        """Its blocks, in call order."""
        return [*self.double_blocks, *self.single_blocks]

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Any = None) -> Tensor:
        hidden, encoder = hidden_states, encoder_hidden_states
        for block in self.double_blocks:
            encoder, hidden = block(hidden, encoder)
        hidden = torch.cat([encoder, hidden] if self.join == "eh" else [hidden, encoder], dim=1)
        for block in self.single_blocks:
            hidden = block(hidden)
        hidden = hidden[:, TEXT:] if self.join == "eh" else hidden[:, :-TEXT]
        result: Tensor = self.leave(hidden)
        return result

    def adapter(self, **options: Any) -> BlockAdapter:
        """Its description."""
        return BlockAdapter(
            transformer=self,
            blocks=[self.double_blocks, self.single_blocks],
            forward_pattern=[P.Pattern_1, P.Pattern_3],
            merge=True,
            join=self.join,
            **options,
        )


# -- plans and runs


def static(line: str, **options: Any) -> DBCacheConfig:
    """A configuration that follows a line of F (compute) and C (cache) whatever the inputs are."""
    mask = [int(letter == "F") for letter in line]
    defaults: dict[str, Any] = {"Fn_compute_blocks": 1, "max_warmup_steps": 1}
    return DBCacheConfig(**{**defaults, **options}, steps_computation_mask=mask, steps_computation_policy="static")


def dynamic(**options: Any) -> DBCacheConfig:
    """A configuration that measures: F1, one step of warm-up, a generous threshold."""
    return DBCacheConfig(**{"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 0.5, **options})


def stream_inputs(model: nn.Module | None = None, *, batch: int = 1, tokens: int = TOKENS, seed: int = 0) -> Any:
    """(H, E) for a toy, E only where its blocks read one."""
    hidden, encoder = normal(batch, tokens, WIDTH, seed=seed), normal(batch, TEXT, WIDTH, seed=seed + 1)
    reads = not isinstance(model, Toy) or not model.form.pattern.Forward_H_only
    return (hidden, encoder) if reads else (hidden,)


@torch.no_grad()
def frozen_run(model: Callable[..., Tensor], inputs: Iterable[Any], steps: int) -> list[Tensor]:
    """The outputs of as many calls with the same inputs."""
    given = tuple(inputs)
    return [model(*given) for _ in range(steps)]


def loop(steps: int, *, high: float = 1.0, low: float = 0.0) -> list[float]:
    """The timesteps of a run: falling, without the last one."""
    return [high - (high - low) * step / steps for step in range(steps)]


@torch.no_grad()
def denoise(
    model: Callable[..., Tensor],
    timesteps: Iterable[float | None],
    *,
    seed: int = 0,
    batch: int = 1,
    tokens: int = TOKENS,
    text: Tensor | None = None,
) -> list[Tensor]:
    """The outputs of a small denoising loop over a toy of two streams: each step's input comes from the last output.

    The parts of one run have one ``text``: another object in its place is another text.
    """
    hidden, encoder = stream_inputs(batch=batch, tokens=tokens, seed=seed)
    encoder = encoder if text is None else text
    outputs = []
    for timestep in timesteps:
        output = model(hidden, encoder, None if timestep is None else torch.tensor(timestep))
        hidden = hidden + 0.1 * output
        outputs.append(output)
    return outputs


def lines(model: Any, chain: int = 0) -> dict[str, str]:
    """The steps line of each branch."""
    return cache_dit.summary(model, logging=False)[chain].steps_line


def line(model: Any, chain: int = 0) -> str:
    """The steps line of the one branch that there is."""
    (only,) = lines(model, chain).values()
    return only


@contextlib.contextmanager
def counted(blocks: Iterable[nn.Module]) -> Iterator[Counter[int]]:
    """How often each block's forward hooks fire inside, by the block's place."""
    fired: Counter[int] = Counter()
    hooks = [
        block.register_forward_hook(lambda module, args, output, place=place: fired.update([place]))
        for place, block in enumerate(blocks)
    ]
    try:
        yield fired
    finally:
        for hook in hooks:
            hook.remove()
