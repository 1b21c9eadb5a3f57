"""A model that nobody described: one forward shows how its blocks are called, and what to write for it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cache_dit
from cache_dit import BlockAdapter, ConfigError, ForwardPattern, Inspection, UnsupportedModelError
from cache_dit.models import adapter_of
from tests.kit.claims import run
from tests.kit.equality import close
from tests.kit.tiny_models import TINY, inputs, tiny
from tests.kit.toys import (
    FORMS,
    TEXT,
    TOKENS,
    WIDTH,
    Joined,
    PairBlock,
    SoloBlock,
    Toy,
    counted,
    frozen_run,
    line,
    lines,
    normal,
    static,
    stream_inputs,
)

P = ForwardPattern
LINE = "FFCCFC"
NAMES = ("hidden_states", "encoder_hidden_states")
HIDDEN, TEXTS = normal(1, TOKENS, WIDTH), normal(1, TEXT, WIDTH, seed=1)


def mixed(linear: nn.Linear, stream: Tensor, other: Tensor) -> Tensor:
    """A stream and what a block makes of it and of another one."""
    return stream + 0.3 * torch.tanh(linear(stream) + other.mean(1, keepdim=True))


class Model(nn.Module):
    """A model of nobody's: blocks of one class, and a loop over them that a subclass writes."""

    block: Callable[[], nn.Module]

    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(type(self).block() for _ in range(depth))
        self.requires_grad_(False)

    def forward(self, sample: Tensor, context: Tensor) -> Any:
        raise NotImplementedError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)


# -- shapes of block that no record covers, and that can be cached


class XBlock(Block):
    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return mixed(self.image, x, context), mixed(self.text, context, x)


class ByPlace(Model):
    block = XBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        x = sample
        for layer in self.layers:
            x, context = layer(x, context)
        return x + context.mean(1, keepdim=True)


class ByName(ByPlace):
    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        x = sample
        for layer in self.layers:
            x, context = layer(context=context, x=x)
        return x + context.mean(1, keepdim=True)


class SwappedBlock(Block):
    def forward(self, t: Tensor, txt: Tensor, img: Tensor) -> tuple[Tensor, Tensor]:
        return mixed(self.text, txt, img) + t, mixed(self.image, img, txt) + t


class Swapped(Model):
    """(E, H) comes in by place and name, at places 1 and 2, and out in that order."""

    block = SwappedBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            context, sample = layer(torch.tensor(0.1), context, img=sample)
        return sample + context.mean(1, keepdim=True)


class ReadingBlock(Block):
    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return mixed(self.image, hidden_states, encoder_hidden_states)


class Reading(Model):
    block = ReadingBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            sample = layer(sample, context)
        return sample


class Store:
    """What a block keeps its keys and values in, say."""

    def __init__(self, text: Tensor) -> None:
        self.text = text


class StoreBlock(Block):
    def forward(self, x: Tensor, store: Store) -> Tensor:
        return mixed(self.image, x, store.text)


class ObjectInTheSecondSlot(Model):
    block = StoreBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        store = Store(context)
        for layer in self.layers:
            sample = layer(sample, store)
        return sample


class AnyBlock(nn.Module):
    """A wrapper around a block, whose forward says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = XBlock()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class WrappedBlocks(ByPlace):
    block = AnyBlock


class WrappedBlocksByName(ByName):
    block = AnyBlock


class WrappedModel(nn.Module):
    """The blocks are two modules down, in a list of stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Identity(), ByPlace()])

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        result: Tensor = self.stages[1](self.stages[0](sample), context)
        return result


class OwnTextBlock(Block):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + torch.tanh(self.image(x)), torch.tanh(self.text(x[:, :2]))


class OwnText(Model):
    """A second tensor comes out of each block that does not go into the next one."""

    block = OwnTextBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            sample, text = layer(sample)
        return sample + text.mean(1, keepdim=True)


class Controlled(Model):
    """The loop adds to the stream between blocks: the next block gets another tensor."""

    block = ReadingBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            sample = layer(sample, context) + 0.1
        return sample


class Backwards(Model):
    block = StoreBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for place in (3, 1, 0, 4):
            sample = self.layers[place](sample, Store(context))
        return sample


class Twice(Reading):
    """The whole list runs twice."""

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        return super().forward(0.5 * super().forward(sample, context), context)


class InADict(Reading):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({f"block {place}": block for place, block in enumerate(self.layers)})

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers.values():
            sample = layer(sample, context)
        return sample


class PlainBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.image(x))


class InASequential(Model):
    block = PlainBlock

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*self.layers)

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        result: Tensor = self.layers(sample)
        return result


class InPlaceBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(torch.tanh(self.image(x)))


class InPlace(Model):
    block = InPlaceBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        sample = sample.clone()
        for layer in self.layers:
            sample = layer(sample)
        return sample


class InTurns(nn.Module):
    """Two lists of equal length whose blocks take turns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spatial = nn.ModuleList(PlainBlock() for _ in range(4))
        self.temporal = nn.ModuleList(PlainBlock() for _ in range(4))
        self.requires_grad_(False)

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            sample = temporal(spatial(sample))
        return sample


class SideList(nn.Module):
    """A second list makes hints of what each block of the first returns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hints = nn.ModuleList(PlainBlock() for _ in range(5))
        self.main = nn.ModuleList(PlainBlock() for _ in range(5))
        self.requires_grad_(False)

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for main, hint in zip(self.main, self.hints, strict=True):
            sample = main(sample)
            sample = sample + 0.1 * hint(sample)
        return sample


class Experts(Block):
    """A block that has a list in it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(PlainBlock() for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for expert in self.experts:
            x = expert(x)
        return x


class OfExperts(InPlace):
    block = Experts


class Alternating(Model):
    """Every other block returns its result in a tuple."""

    block = SoloBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            layer.give = (lambda h, e: (h,)) if place % 2 else (lambda h, e: h)
            output = layer(sample)
            sample = output[0] if place % 2 else output
        return sample


class LastWithoutText(Model):
    """The last block returns None for E."""

    block = staticmethod(lambda: PairBlock(lambda h, e: (e, h)))

    def __init__(self) -> None:
        super().__init__()
        self.layers[-1].give = lambda h, e: (None, h)

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            context, sample = layer(sample, context)
        return sample


class MisleadingBlock(Block):
    def forward(self, image: Tensor, s: Tensor) -> Tensor:
        return mixed(self.image, s, image)


class Misleading(Model):
    """An argument of the same shape, which is new at every block, has the name of a stream."""

    block = MisleadingBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            sample = layer(HIDDEN * place, sample)
        return sample


class AsideFirstBlock(Block):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.text(x)), x + torch.tanh(self.image(x))


class AsideFirst(Model):
    """What comes out first has the shape of the stream, but is none."""

    block = AsideFirstBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            aside, sample = layer(sample)
        return sample + aside


class UnequalTurns(InTurns):
    """One list has a block more than the other: they cannot be one chain that takes turns."""

    def __init__(self) -> None:
        super().__init__()
        self.temporal = self.temporal[:3]

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for spatial, temporal in zip(self.spatial, self.temporal, strict=False):
            sample = temporal(spatial(sample))
        result: Tensor = self.spatial[3](sample)
        return result


class HeldTwice(InPlace):
    """Some of the blocks stand in a second list, too."""

    def __init__(self) -> None:
        super().__init__()
        self.some = nn.ModuleList(self.layers[:3])


class LastBare(LastWithoutText):
    def __init__(self) -> None:
        super().__init__()
        self.layers[-1].give = lambda h, e: h

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            context, sample = layer(sample, context)
        result: Tensor = self.layers[-1](sample, context)
        return result


#: model, its list(s), pattern, names of H and E
CACHEABLE: dict[str, tuple[Callable[[], nn.Module], str, ForwardPattern, tuple[str, str]]] = {
    "by place": (ByPlace, "layers", P.Pattern_0, ("x", "context")),
    "by name": (ByName, "layers", P.Pattern_0, ("x", "context")),
    "(E, H), and at other places": (Swapped, "layers", P.Pattern_1, ("img", "txt")),
    "E is read only": (Reading, "layers", P.Pattern_2, NAMES),
    "an object in the second slot": (ObjectInTheSecondSlot, "layers", P.Pattern_3, ("x", NAMES[1])),
    "blocks in wrappers, by place": (WrappedBlocks, "layers", P.Pattern_0, NAMES),
    "blocks in wrappers, by name": (WrappedBlocksByName, "layers", P.Pattern_0, ("x", "context")),
    "a model in a wrapper": (WrappedModel, "stages.1.layers", P.Pattern_0, ("x", "context")),
    "a tensor that no block reads": (OwnText, "layers", P.Pattern_4, ("x", NAMES[1])),
    "changed between blocks": (Controlled, "layers", P.Pattern_2, NAMES),
    "another order, one left out": (Backwards, "layers", P.Pattern_3, ("x", NAMES[1])),
    "the list runs twice": (Twice, "layers", P.Pattern_2, NAMES),
    "a ModuleDict": (InADict, "layers", P.Pattern_2, NAMES),
    "a Sequential": (InASequential, "layers", P.Pattern_3, ("x", NAMES[1])),
    "in place": (InPlace, "layers", P.Pattern_3, ("x", NAMES[1])),
    "lists that take turns": (InTurns, "spatial+temporal", P.Pattern_3, ("x", NAMES[1])),
    "a side list": (SideList, "main", P.Pattern_3, ("x", NAMES[1])),
    "H alone in the last result": (LastBare, "layers", P.Pattern_5, NAMES),
    "a name that misleads": (Misleading, "layers", P.Pattern_3, ("s", NAMES[1])),
    "an aside comes first": (AsideFirst, "layers", P.Pattern_5, ("x", NAMES[1])),
    "turns of unequal lists": (UnequalTurns, "spatial", P.Pattern_3, ("x", NAMES[1])),
    "blocks in two lists": (HeldTwice, "layers", P.Pattern_3, ("x", NAMES[1])),
    "results of two forms": (Alternating, "layers", P.Pattern_3, NAMES),
    "no E in the last result": (LastWithoutText, "layers", P.Pattern_1, NAMES),
    "lists inside blocks": (OfExperts, "layers", P.Pattern_3, ("x", NAMES[1])),
}


def described(code: str, transformer: nn.Module) -> BlockAdapter:
    """The adapter in a line of code, as a user's program would make it."""
    begin, end = "cache_dit.enable_cache(", ")"
    assert code.startswith(begin)
    names = {"BlockAdapter": BlockAdapter, "ForwardPattern": ForwardPattern, "transformer": transformer}
    adapter: BlockAdapter = eval(code.removeprefix(begin).removesuffix(end), names)
    return adapter


@pytest.mark.parametrize("way", ["adapter", "line"])
@pytest.mark.parametrize("shape", CACHEABLE)
def test_what_one_forward_shows_is_a_description_under_which_skipped_steps_are_right(shape: str, way: str) -> None:
    make, names, pattern, streams = CACHEABLE[shape]
    model = make()
    expected = frozen_run(model, (HIDDEN, TEXTS), 1)[0]
    seen = cache_dit.inspect(model, HIDDEN, context=TEXTS)
    adapter = seen.adapter() if way == "adapter" else described(seen.line(), model)
    (target,) = adapter.targets()
    (chain,) = target.chains
    assert chain.name == names
    assert {(listed.pattern, listed.streams) for listed in chain.lists} == {(pattern, streams)}
    assert cache_dit.enable_cache(adapter, static(LINE)) is adapter
    blocks = [block for listed in chain.lists for block in listed.blocks]
    with counted(blocks) as fired:
        assert close(frozen_run(model, (HIDDEN, TEXTS), len(LINE)), expected)
    lines = cache_dit.summary(model, logging=False)[0].steps_line
    assert set(lines.values()) == {LINE}
    assert 0 < sum(fired.values()) < len(LINE) * len(blocks) * len(lines)


@pytest.mark.parametrize("keywords", [False, True], ids=["positional", "keyword"])
@pytest.mark.parametrize("form", FORMS)
def test_the_pattern_of_every_form_is_found(form: str, keywords: bool) -> None:
    model = Toy(form, keywords=keywords)
    inputs = stream_inputs(model)
    expected = frozen_run(model, inputs, 1)[0]
    adapter = cache_dit.inspect(model, *inputs).adapter()
    found, given = adapter.forward_pattern[0], FORMS[form].pattern
    assert found is given or "None" in form or form == "4 H"  # forms without a second tensor belong to several
    cache_dit.enable_cache(adapter, static(LINE))
    assert close(frozen_run(model, inputs, len(LINE)), expected)
    assert line(model) == LINE


@pytest.mark.parametrize("join", ["eh", "he"])
def test_of_two_lists_each_can_be_a_chain_of_its_own(join: str) -> None:
    model = Joined(join, (3, 4))
    inputs = stream_inputs()
    expected = frozen_run(model, inputs, 1)[0]
    seen = cache_dit.inspect(model, *inputs)
    assert [(found.name, found.fit.pattern) for found in seen.fitting if found.fit] == [
        ("single_blocks", P.Pattern_3),
        ("double_blocks", P.Pattern_1),
    ]
    assert [chain.name for chain in seen.adapter("single_blocks").targets()[0].chains] == ["single_blocks"]
    both = ("double_blocks", "single_blocks")
    for adapter in (seen.adapter(*both), described(seen.line(*both), model)):
        assert [chain.name for chain in adapter.targets()[0].chains] == list(both)
        cache_dit.enable_cache(adapter, static(LINE))
        assert close(frozen_run(model, inputs, len(LINE)), expected)
        assert line(model, 0) == line(model, 1) == LINE
    with pytest.raises(
        ConfigError, match="'blocks' is no list that fits: pass one of 'single_blocks', 'double_blocks'"
    ):
        seen.adapter("blocks")


class DoubleBlock(Block):
    def forward(self, img: Tensor, txt: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        return mixed(self.image, img, txt) + vec, mixed(self.text, txt, img)


class SingleBlock(Block):
    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        return mixed(self.image, x, x) + vec


class ReadsBothBlock(DoubleBlock):
    pass


class DoubleThenSingle(nn.Module):
    """As the model cards of the field write it: two streams, then one; how the second takes over is up to ``take``."""

    single: Callable[[], nn.Module] = SingleBlock

    def __init__(self, depths: tuple[int, int, int] = (3, 4, 0)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.single_blocks = nn.ModuleList(type(self).single() for _ in range(depths[1]))
        self.double_blocks = nn.ModuleList(DoubleBlock() for _ in range(depths[0]))
        self.last_blocks = nn.ModuleList(PlainBlock() for _ in range(depths[2]))
        self.requires_grad_(False)

    def take(self, image: Tensor, text: Tensor) -> Tensor:
        return torch.cat((text, image), 1)

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        vec = sample.mean((1, 2), keepdim=True)
        for block in self.double_blocks:
            sample, context = block(sample, context, vec=vec)
        joint = self.take(sample, context)
        for block in self.single_blocks:
            joint = block(joint, vec)
        for block in self.last_blocks:
            joint = block(joint)
        return joint[:, -TOKENS:]


class ImageFirst(DoubleThenSingle):
    def take(self, image: Tensor, text: Tensor) -> Tensor:
        return torch.cat((image, text), 1)


class WithAList(DoubleThenSingle):
    """Another list of modules is called between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU()).requires_grad_(False)

    def take(self, image: Tensor, text: Tensor) -> Tensor:
        self.embed(image)
        return super().take(image, text)


class Changed(DoubleThenSingle):
    def take(self, image: Tensor, text: Tensor) -> Tensor:
        return torch.cat((text + 0.1, image), 1)


class ImageAlone(DoubleThenSingle):
    def take(self, image: Tensor, text: Tensor) -> Tensor:
        return image


class OverChannels(DoubleThenSingle):
    def take(self, image: Tensor, text: Tensor) -> Tensor:
        return torch.cat((image, text.mean(1, keepdim=True).expand_as(image)), 1)


class BothStreams(DoubleThenSingle):
    """The blocks of the second list read and return both streams, too."""

    single = ReadsBothBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        vec = sample.mean((1, 2), keepdim=True)
        for block in (*self.double_blocks, *self.single_blocks):
            sample, context = block(sample, context, vec)
        return sample + context.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("make", "join"),
    [
        (DoubleThenSingle, "eh"),
        (ImageFirst, "he"),
        (WithAList, "eh"),
        (BothStreams, None),
        (Joined, "eh"),
        (Joined, "he"),
    ],
)
@pytest.mark.parametrize("front", [0, 1, 4])
def test_two_lists_of_which_the_second_takes_over_both_streams_are_proposed_as_one_chain(
    make: Callable[..., nn.Module], join: str | None, front: int
) -> None:
    model = make(join, (3, 4)) if make is Joined else make()
    expected = frozen_run(model, (HIDDEN, TEXTS), 1)[0]
    seen = cache_dit.inspect(model, HIDDEN, TEXTS)
    for adapter in (seen.adapter(), described(seen.line(), model)):
        (target,) = adapter.targets()
        (chain,) = target.chains
        assert (chain.name, chain.join) == ("double_blocks+single_blocks", join)
        cache_dit.enable_cache(adapter, static(LINE, Fn_compute_blocks=front))
        assert close(frozen_run(model, (HIDDEN, TEXTS), len(LINE)), expected)
        assert line(model) == LINE
    told = str(seen).split("Write (and check it", 1)[1].splitlines()
    assert ("join=" in told[1]) is (join is not None)
    assert told[1].strip() == seen.line()
    assert told[2] == "Several lists, each a chain of its own:"


@pytest.mark.parametrize("make", [Changed, ImageAlone, OverChannels])
def test_lists_that_hand_on_something_else_than_both_streams_are_not_joined(make: Callable[[], nn.Module]) -> None:
    model = make()
    seen = cache_dit.inspect(model, HIDDEN, TEXTS)
    assert seen.joined == ()
    assert "join=" not in str(seen)
    assert [chain.name for chain in seen.adapter().targets()[0].chains] == ["single_blocks"]


def test_a_list_that_is_longer_than_two_joined_ones_goes_before_them() -> None:
    model = DoubleThenSingle((2, 2, 5))
    seen = cache_dit.inspect(model, HIDDEN, TEXTS)
    assert [chain.name for chain in seen.adapter().targets()[0].chains] == ["last_blocks"]
    (chain,) = cache_dit.inspect(DoubleThenSingle((2, 2, 3)), HIDDEN, TEXTS).adapter().targets()[0].chains
    assert chain.name == "double_blocks+single_blocks"


class Between(nn.Module):
    """Two lists take turns, and the model changes the stream between their blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spatial = nn.ModuleList(PlainBlock() for _ in range(4))
        self.temporal = nn.ModuleList(PlainBlock() for _ in range(4))
        self.requires_grad_(False)

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            sample = temporal(spatial(sample).flip(1)).flip(1)
        return sample


@pytest.mark.parametrize("name", ["spatial", "temporal"])
def test_of_lists_that_mix_one_can_be_skipped(name: str) -> None:
    model = Between()
    expected = model(HIDDEN, TEXTS)
    seen = cache_dit.inspect(model, HIDDEN, TEXTS)
    assert "Several lists" not in str(seen)
    with pytest.raises(ConfigError, match="blocks of spatial and temporal are called between each other"):
        seen.adapter("spatial", "temporal")
    cache_dit.enable_cache(seen.adapter(name), static(LINE))
    assert close(frozen_run(model, (HIDDEN, TEXTS), len(LINE)), expected)


FAST = ("FluxTransformer2DModel", "SD3Transformer2DModel", "WanTransformer3DModel", "LatteTransformer3DModel")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TINY]
)
def test_models_that_have_a_record_are_found_without_it(name: str) -> None:
    model = tiny(name)
    (expected,) = run(model, [0.6])
    asks = "return_dict" in inspect.signature(type(model).forward).parameters
    given = {**inputs(name, timestep=0.6), **({"return_dict": False} if asks else {})}
    seen = cache_dit.inspect(model, **given)
    (target,) = adapter_of(model).targets()
    assert {found.name for found in seen.fitting} >= {listed.name for chain in target.chains for listed in chain.lists}
    if seen.joined:
        assert (seen.joined, seen.join) == (tuple(one.name for one in target.chains[0].lists), target.chains[0].join)
    cache_dit.enable_cache(seen.adapter(), static(LINE, enable_separate_cfg=False))
    assert close(run(model, [0.6] * len(LINE)), expected)
    assert lines(model) == {"default": LINE}


def test_more_of_the_adapter_can_be_said() -> None:
    assert cache_dit.inspect(ByPlace(), HIDDEN, TEXTS).adapter(has_separate_cfg=True).has_separate_cfg


# -- shapes that cannot be cached, and what is said of them


@dataclasses.dataclass
class Result:
    hidden: Tensor
    text: Tensor


class Giving(Model):
    """Blocks that return whatever ``give`` makes of (H, E), and a loop that reads it."""

    block = nn.Identity

    def __init__(self, give: Callable[[Tensor, Tensor], Any], read: Callable[[Any], tuple[Any, ...]]) -> None:
        super().__init__()
        self.read = read
        self.layers = nn.ModuleList(PairBlock(give) for _ in range(5))
        self.requires_grad_(False)

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            sample, context, *_ = self.read(layer(sample, context))
        return sample


class DirectlyCalled(Reading):
    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            sample = layer.forward(sample, context)
        return sample


class NotCalled(Reading):
    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        return sample


class OneCalled(Reading):
    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        result: Tensor = self.layers[2](sample, context)
        return result


class EachTwice(Reading):
    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            sample = layer(layer(sample, context), context)
        return sample


class Unchained(Reading):
    """Each block reads the model's input."""

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        return sum((layer(sample, context) for layer in self.layers), sample)


class Shrinking(Reading):
    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            sample = layer(sample, context)[:, 1:]
        return sample


class HalvingBlock(Block):
    """A block with layers in a list, which are not worth a line."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Dropout()])

    def forward(self, x: Tensor) -> Tensor:
        return self.image(x)[:, 1:]


class Halving(InPlace):
    block = HalvingBlock


class Layers(Model):
    block = staticmethod(lambda: nn.Linear(WIDTH, WIDTH))

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            sample = layer(sample)
        return sample


class OfTwoClasses(InPlace):
    def __init__(self) -> None:
        super().__init__()
        self.layers.append(PlainBlock())


class OneInstance(InPlace):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([PlainBlock()] * 4)


class NamelessBlock(nn.Module):
    def forward(self, *args: Any) -> Tensor:
        return args[1] + 1


class Nameless(Model):
    block = NamelessBlock

    def forward(self, sample: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            sample = layer(0.5, sample)
        return sample


UNFIT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a dataclass": (
        lambda: Giving(Result, lambda out: (out.hidden, out.text)),
        r"its blocks return .*Result, which no pattern expresses: let the block return H, .*wrap it",
    ),
    "a dict": (
        lambda: Giving(lambda h, e: {"h": h, "e": e}, lambda out: (out["h"], out["e"])),
        "its blocks return builtins.dict, which no pattern expresses: .*wrap it",
    ),
    "three tensors": (
        lambda: Giving(lambda h, e: (h, e, e), tuple),
        "its blocks return a tuple of .a tensor.*a tensor.*a tensor.*no pattern expresses: .*wrap it",
    ),
    "an object that comes out": (
        lambda: Giving(lambda h, e: (h, Store(e)), lambda out: (out[0], out[1].text)),
        "Store., which no pattern expresses",
    ),
    "block.forward": (DirectlyCalled, r"run but not called: write block\(x\).*not block.forward\(x\)"),
    "not called": (NotCalled, "its blocks were not called in this forward"),
    "one called": (OneCalled, "only one block was called"),
    "each block twice": (EachTwice, "several times, and not in rounds: 0, 0, 1, 1"),
    "parallel": (Unchained, "nothing that comes in has that shape and changes with it"),
    "a shape that changes between blocks": (Shrinking, "the shape of hidden_states changes from block to block"),
    "a shape that changes in blocks": (Halving, "nothing that comes in has that shape"),
    "plain layers": (Layers, "plain layers of torch.nn"),
    "two classes": (OfTwoClasses, "of several classes: InPlaceBlock, PlainBlock"),
    "one instance": (OneInstance, "one instance stands in it twice"),
    "no name for a place": (Nameless, "hidden_states comes at place 1, for which forward has no name"),
}


@pytest.mark.parametrize("shape", UNFIT)
def test_a_list_that_does_not_fit_is_shown_with_the_reason(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, reason = UNFIT[shape]
    model = make()
    seen = cache_dit.inspect(model, HIDDEN, TEXTS)
    printed = capsys.readouterr().out
    (found,) = seen.lists
    assert found.fit is None
    assert seen.fitting == []
    assert f"cannot be cached: {found.reason}" in printed
    assert "No list fits. What can be done" in printed
    for ask in (seen.adapter, seen.line):
        with pytest.raises(
            UnsupportedModelError, match=rf"no block list of {type(model).__name__} fits: layers: .*{reason}"
        ):
            ask()


def test_a_wrapped_block_is_the_way_out() -> None:
    class Wrapper(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
            result = self.block(hidden_states, encoder_hidden_states)
            return result.hidden, result.text

    model = Giving(Result, tuple)
    model.layers = nn.ModuleList(map(Wrapper, model.layers))
    assert cache_dit.inspect(model, HIDDEN, TEXTS).adapter().forward_pattern == [P.Pattern_0]


def test_a_model_without_lists_is_an_error_that_says_so() -> None:
    seen = cache_dit.inspect(nn.Linear(WIDTH, WIDTH), HIDDEN)
    with pytest.raises(UnsupportedModelError, match="no block list of Linear fits: it has no list of modules"):
        seen.adapter()


# -- what is printed, and what is left behind


def test_the_report_says_what_came_in_and_out_and_what_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    seen = cache_dit.inspect(ByPlace(), HIDDEN, TEXTS)
    assert isinstance(seen, Inspection)
    assert capsys.readouterr().out == f"{seen}\n"
    assert str(seen).splitlines()[:5] == [
        "ByPlace: what one forward showed",
        "layers: 5 × XBlock, called once each, in order",
        "    in:  x: a tensor of shape (1, 6, 8), context: a tensor of shape (1, 3, 8)",
        "    out: a tuple of (a tensor of shape (1, 6, 8), a tensor of shape (1, 3, 8))",
        "    the next block gets what the last one returned",
    ]
    assert str(seen).splitlines()[-1].strip() == (
        "cache_dit.enable_cache(BlockAdapter(transformer=transformer, blocks=transformer.layers, "
        'forward_pattern=ForwardPattern.Pattern_0, stream_names=("x", "context")))'
    )


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Backwards, "called once each, in the order 3, 1, 0, 4, 1 of them not"),
        (Twice, "called 2 times each, in order"),
        (Controlled, "the next block gets another tensor of the same shape"),
        (SideList, "its blocks read what those of main return"),
        (InTurns, "merge=True, interleave=True"),
    ],
)
def test_what_is_unusual_is_said(model: Callable[[], nn.Module], said: str) -> None:
    assert said in str(cache_dit.inspect(model(), HIDDEN, TEXTS))


def hooks(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield from (*module._forward_hooks.values(), *module._forward_pre_hooks.values())


def test_nothing_is_left_on_the_model_and_its_output_is_its_own() -> None:
    model = ByPlace()
    kept = {name: dict(vars(module)) for name, module in model.named_modules()}
    cache_dit.inspect(model, HIDDEN, TEXTS)
    assert {name: vars(module) for name, module in model.named_modules()} == kept
    assert not list(hooks(model))
    assert torch.is_grad_enabled()


def test_nothing_is_left_after_an_error_in_the_forward() -> None:
    model = ByPlace()
    with pytest.raises(RuntimeError):
        cache_dit.inspect(model, HIDDEN, normal(1, TEXT, WIDTH + 1))
    assert not list(hooks(model))
    assert torch.is_grad_enabled()


def test_a_compiled_model_is_watched_in_eager_mode() -> None:
    model = ByPlace()
    compiled = torch.compile(model, backend="eager")
    compiled(HIDDEN, TEXTS)
    adapter = cache_dit.inspect(compiled, HIDDEN, TEXTS).adapter()
    assert adapter.transformer is compiled
    assert adapter.blocks_name == ["layers"]


def test_a_model_compiled_in_place_is_watched_without_compiling_it_anew() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = ByPlace()
    model.compile(backend=backend, fullgraph=True)
    model(HIDDEN, TEXTS)
    compiled = len(graphs)
    assert len(cache_dit.inspect(model, HIDDEN, TEXTS).fitting) == 1
    assert len(graphs) == compiled > 0


def test_what_hooks_of_others_put_in_a_tensors_place_does_not_count() -> None:
    model = InASequential()
    for block in model.layers:
        block.register_forward_pre_hook(lambda module, args: (args[0].clone(),))
    (found,) = cache_dit.inspect(model, HIDDEN, TEXTS).fitting
    assert found.fit is not None
    assert found.fit.linked


def test_blocks_that_are_called_in_another_order_are_described_in_it() -> None:
    model = Backwards()
    seen = cache_dit.inspect(model, HIDDEN, TEXTS)
    for adapter in (seen.adapter(), described(seen.line(), model)):
        ((chain,),) = (target.chains for target in adapter.targets())
        assert list(chain.lists[0].blocks) == [model.layers[place] for place in (3, 1, 0, 4)]


def test_blocks_in_two_lists_are_found_in_both() -> None:
    assert {found.name for found in cache_dit.inspect(HeldTwice(), HIDDEN, TEXTS).fitting} == {"layers", "some"}


def test_one_change_between_two_blocks_is_seen() -> None:
    class ChangedOnce(Reading):
        def forward(self, sample: Tensor, context: Tensor) -> Tensor:
            for place, layer in enumerate(self.layers):
                sample = layer(sample + 1 if place == 3 else sample, context)
            return sample

    (found,) = cache_dit.inspect(ChangedOnce(), HIDDEN, TEXTS).fitting
    assert found.fit is not None
    assert not found.fit.linked


def test_compiled_blocks_are_seen_by_the_names_of_the_blocks_in_them() -> None:
    model = ByPlace()
    model.layers = nn.ModuleList(torch.compile(block, backend="eager") for block in model.layers)
    (found,) = cache_dit.inspect(model, HIDDEN, TEXTS).lists
    assert found.watched.classes == ["XBlock"]
    assert found.fit is not None
    assert found.fit.streams == ("x", "context")


def test_a_model_with_a_cache_on_and_what_is_none_are_refused() -> None:
    model = WrappedModel()
    cache_dit.enable_cache(cache_dit.inspect(model.stages[1], HIDDEN, TEXTS).adapter(), static(LINE))
    with pytest.raises(ConfigError, match=r"disable_cache\(transformer\) first"):
        cache_dit.inspect(model, HIDDEN, TEXTS)
    with pytest.raises(ConfigError, match="inspect got a str"):
        cache_dit.inspect("flux")  # type: ignore[arg-type]


# -- how a user gets there


def test_the_refusal_of_an_unknown_model_names_inspect_and_the_adapter() -> None:
    with pytest.raises(UnsupportedModelError, match=r"no record of ByPlace: call cache_dit.inspect\(.*BlockAdapter\("):
        cache_dit.enable_cache(ByPlace())


def test_auto_takes_a_transformer_as_the_first_argument() -> None:
    model = Toy("0")
    adapter = BlockAdapter(model, forward_pattern=P.Pattern_0, auto=True)
    assert adapter.transformer is model
    inputs = stream_inputs(model)
    expected = frozen_run(model, inputs, 1)[0]
    cache_dit.enable_cache(adapter, static(LINE))
    assert close(frozen_run(model, inputs, len(LINE)), expected)
    assert line(model) == LINE


@pytest.mark.parametrize(("model", "name", "pattern"), [(Reading, "layers", P.Pattern_2), (Toy, "blocks", P.Pattern_3)])
def test_auto_needs_no_pattern_where_the_signature_decides(
    model: Callable[..., nn.Module], name: str, pattern: ForwardPattern
) -> None:
    made = model("3") if model is Toy else model()
    adapter = BlockAdapter(made, auto=True)
    assert (adapter.blocks_name, adapter.forward_pattern) == (name, pattern)
    assert adapter.blocks is getattr(made, name)


@pytest.mark.parametrize("model", [ByPlace, lambda: Toy("0"), lambda: Toy("1"), lambda: nn.Linear(2, 2)])
def test_auto_says_to_inspect_where_the_signature_does_not_decide(model: Callable[[], nn.Module]) -> None:
    with pytest.raises(ConfigError, match=r"auto=True .*cache_dit\.inspect\("):
        BlockAdapter(model(), auto=True)


def test_a_pattern_that_does_not_fit_any_list_points_to_inspect() -> None:
    with pytest.raises(UnsupportedModelError, match=r"cache_dit\.inspect\("):
        BlockAdapter(ByPlace(), auto=True, forward_pattern=P.Pattern_0)
