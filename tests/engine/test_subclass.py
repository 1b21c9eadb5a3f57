"""Giving one instance a subclass of its class, and giving the class back."""

from __future__ import annotations

import abc
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from cache_dit import UnsupportedModelError
from cache_dit.engine.subclass import STATE, state_of, subclass, unwrap, wrap


class Plain(nn.Module):
    """A class with a docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def __call__(self, x: torch.Tensor) -> Any:
        """What it does."""
        return super().__call__(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def doubled(base: Any, metaclass: Any) -> type:
    """Twice what the class gives, while it has a state."""

    class Doubled(base, metaclass=metaclass):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            result = super().__call__(*args, **kwargs)
            return 2 * result if STATE in self.__dict__ else result

    return Doubled


def tripled(base: Any, metaclass: Any) -> type:
    """Three times what the class gives, while it has a state."""

    class Tripled(base, metaclass=metaclass):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            result = super().__call__(*args, **kwargs)
            return 3 * result if STATE in self.__dict__ else result

    return Tripled


ONE = torch.ones(1)


def test_a_wrapped_instance_does_more_and_an_unwrapped_one_what_it_did() -> None:
    module, other = Plain(), Plain()
    wrap(module, doubled, "state")
    assert module(ONE) == 4
    assert other(ONE) == 2
    assert state_of(module) == "state"
    unwrap(module)
    assert type(module) is Plain
    assert module(ONE) == 2
    assert state_of(module) is None
    assert STATE not in vars(module)


def test_a_state_is_replaced() -> None:
    module = Plain()
    for state in (1, 2):
        wrap(module, doubled, state)
    assert state_of(module) == 2
    assert module(ONE) == 4
    unwrap(module)
    assert type(module) is Plain


def test_taking_off_what_is_not_on_changes_nothing() -> None:
    module = Plain()
    unwrap(module)
    assert type(module) is Plain


def test_a_module_as_state_is_no_submodule() -> None:
    module = Plain()
    wrap(module, doubled, nn.Linear(2, 2))
    assert [name for name, _ in module.named_modules()] == ["", "inner"]
    assert list(module.state_dict()) == ["inner.weight", "inner.bias"]


def test_the_subclass_goes_by_the_name_of_its_base() -> None:
    made = subclass(Plain, doubled)
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(made, name) == getattr(Plain, name)
    assert repr(type(Plain())) == repr(made)
    assert "__slots__" not in vars(made)
    assert inspect.signature(made.forward) == inspect.signature(Plain.forward)


def test_one_subclass_is_made_per_class_and_role() -> None:
    assert subclass(Plain, doubled) is subclass(Plain, doubled)
    assert subclass(Plain, doubled) is not subclass(Plain, tripled)
    assert subclass(nn.Linear, doubled) is not subclass(Plain, doubled)


def test_the_subclass_equals_its_base_but_has_a_hash_of_its_own() -> None:
    made = subclass(Plain, doubled)
    assert made == Plain
    assert Plain in [made]
    assert made in [Plain]
    assert not made != Plain  # noqa: SIM202
    assert made != nn.Linear
    assert made != subclass(nn.Linear, doubled)
    assert hash(made) != hash(Plain)
    assert len({made: 1, Plain: 2}) == 2
    assert type(made).__name__ == type(Plain).__name__


@pytest.mark.parametrize("base", [Plain, nn.Linear, nn.Sequential])
def test_equality_does_not_make_all_classes_equal(base: type) -> None:
    made = subclass(base, doubled)
    assert made not in (object, type, dict)
    assert made != None  # noqa: E711
    assert made != "Plain"


class WithMeta(Plain, metaclass=abc.ABCMeta):
    """Has a metaclass."""


def test_the_metaclass_is_kept() -> None:
    made = subclass(WithMeta, doubled)
    assert isinstance(made, abc.ABCMeta)
    assert made == WithMeta
    module = WithMeta()
    wrap(module, doubled, 1)
    assert isinstance(module, WithMeta)
    assert module(ONE) == 4


class Final(nn.Module):
    """Refuses subclasses."""

    def __init_subclass__(cls, **options: Any) -> None:
        raise RuntimeError("not with me")


def test_what_refuses_is_a_typed_error_that_says_why() -> None:
    module = Final()
    with pytest.raises(UnsupportedModelError, match=r"test_subclass\.Final cannot be intercepted \(not with me\)"):
        wrap(module, doubled, 1)
    assert type(module) is Final
    assert STATE not in vars(module)


def test_an_object_without_a_dict_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"builtins\.int"):
        wrap(3, doubled, 1)


def over(module: nn.Module) -> type:
    """What FSDP and parametrize do: a subclass of the class that the instance has by then."""
    base = type(module)
    made = type(base.__name__, (base,), {})
    module.__class__ = made
    return made


def test_a_subclass_that_another_library_put_over_ours_stays_and_ours_is_inert() -> None:
    module = Plain()
    wrap(module, doubled, 1)
    made = over(module)
    assert module(ONE) == 4  # no endless recursion
    unwrap(module)
    assert type(module) is made
    assert module(ONE) == 2
    wrap(module, doubled, 2)
    assert type(module) is made
    assert module(ONE) == 4


def test_a_subclass_that_another_library_put_under_ours() -> None:
    module = Plain()
    made = over(module)
    wrap(module, doubled, 1)
    assert module(ONE) == 4
    unwrap(module)
    assert type(module) is made


def test_wrapping_a_subclass_of_what_was_wrapped() -> None:
    class Derived(Plain):
        pass

    first, second = Plain(), Derived()
    wrap(first, doubled, 1)
    wrap(second, doubled, 1)
    assert (first(ONE), second(ONE)) == (4, 4)
    assert isinstance(second, Plain)
    unwrap(second)
    assert type(second) is Derived


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_instance_is_plain(protocol: int) -> None:
    module = nn.Linear(2, 2)
    wrap(module, doubled, lambda: "cannot be pickled")
    copy = pickle.loads(pickle.dumps(module, protocol))
    assert type(copy) is nn.Linear
    assert STATE not in vars(copy)
    assert torch.equal(copy.weight, module.weight)
    assert state_of(module) is not None
