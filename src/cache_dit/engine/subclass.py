"""Giving one instance a subclass of its own class, and giving the class back.

This is how a cache comes onto a block, a transformer and a pipeline, and how it leaves: ``wrap`` and ``unwrap``.
PyTorch's ``fully_shard`` and ``parametrize`` work in the same way.
"""

from __future__ import annotations

import copyreg
import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

from cache_dit.errors import UnsupportedModelError

#: Where an instance keeps its part of the cache: one entry of its ``__dict__``, and nothing else.
STATE = "_cache_dit"

#: Where a subclass of ours keeps the class it was made from, and the function that made it.
PLAIN = "_cache_dit_plain"
WRAPPER = "_cache_dit_wrapper"

#: Makes the subclass of a class: called with the class and the metaclass that the subclass must have.
Wrapper = Callable[[type, type], type]

_subclasses: dict[Wrapper, weakref.WeakKeyDictionary[type, type]] = {}
_metaclasses: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


def wrap(instance: Any, wrapper: Wrapper, state: Any) -> None:
    """Give ``instance`` the subclass that ``wrapper`` makes of its class, and ``state``; replaces an earlier state.

    Args:
        instance: any object with a ``__dict__``.
        wrapper: makes the subclass; called once per class, so that compiled code sees one type.
        state: what the subclass's methods find under ``STATE`` in the instance's ``__dict__``.

    Raises:
        UnsupportedModelError: if the class cannot be subclassed, or its instances cannot change class.
    """
    current = type(instance)
    if not any(cls.__dict__.get(WRAPPER) is wrapper for cls in current.__mro__):
        try:
            instance.__class__ = subclass(current, wrapper)
        except Exception as error:  # a class's own __init_subclass__ or metaclass may raise anything
            raise UnsupportedModelError(
                f"{current.__module__}.{current.__qualname__} cannot be intercepted ({error}): "
                f"pass the module itself, not a scripted or frozen form of it"
            ) from error
    instance.__dict__[STATE] = state  # not setattr: nn.Module would register modules inside


def unwrap(instance: Any) -> None:
    """Undo ``wrap``: drop the state, and give the class back where no other library has put a subclass over ours."""
    instance.__dict__.pop(STATE, None)
    while (plain := type(instance).__dict__.get(PLAIN)) is not None:
        instance.__class__ = plain


def state_of(instance: Any) -> Any:
    """What ``wrap`` gave to an instance, or None."""
    return getattr(instance, "__dict__", {}).get(STATE)


def base_of(module: Any) -> Any:
    """The module to cache: of a PEFT model its base, which it calls; else the module itself."""
    inner = getattr(module, "_orig_mod", module)
    base = getattr(type(inner), "get_base_model", None)
    return module if base is None else base(inner)


def subclass(base: type, wrapper: Wrapper) -> type:
    """The subclass of ``base`` that ``wrapper`` makes: the same one each time, under the same name.

    That of a class made inside a function lives as long as something has it: kept here, it would keep ``base`` too.
    """
    known = _subclasses.setdefault(wrapper, weakref.WeakKeyDictionary())
    made = known.get(base)
    if made is None:
        subclasses: list[type] = type.__subclasses__(base)
        made = next((one for one in subclasses if one.__dict__.get(WRAPPER) is wrapper), None)
    if made is None:
        made = wrapper(base, _metaclass(type(base)))
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(made, name, getattr(base, name))
        setattr(made, PLAIN, base)
        setattr(made, WRAPPER, wrapper)
        made.__reduce_ex__ = _reduce_plain  # type: ignore[method-assign, assignment]
        if "__deepcopy__" in dir(base):
            made.__deepcopy__ = _deepcopy_plain  # type: ignore[attr-defined]
        _adopt_block_metadata(base, made)
        if "<locals>" not in base.__qualname__:
            known[base] = made
    return made


def _metaclass(base: type) -> type:
    """A metaclass under which a wrapped class equals its plain one, with an identity hash.

    diffusers compares classes by ``==`` when it hands a pipeline's components to another; tables by class, such as
    FSDP's, must still tell the two apart.
    """
    if base not in _metaclasses:

        def __eq__(cls: type, other: object) -> bool:
            return cls is other or (other is not None and cls.__dict__.get(PLAIN) is other)

        members = {"__eq__": __eq__, "__hash__": type.__hash__}
        _metaclasses[base] = type(base.__name__, (base,), members)
    return _metaclasses[base]


def _plain_class(cls: type) -> type:
    plain: type = next(base.__dict__[PLAIN] for base in cls.__mro__ if PLAIN in base.__dict__)
    return plain


def _reduce_plain(self: Any, protocol: Any) -> Any:
    """Copies and pickles are plain: no cache, the class that the instance had before."""
    plain: Any = _plain_class(type(self))
    if plain.__reduce__ is object.__reduce__ and plain.__reduce_ex__ is object.__reduce_ex__:
        getstate = getattr(plain, "__getstate__", None)
        own = getstate is not None and getstate is not getattr(object, "__getstate__", None)
        state = getstate(self) if own and getstate is not None else self.__dict__
        return copyreg._reconstructor, (plain, object, None), _without_state(state)  # type: ignore[attr-defined]
    parts = plain.__reduce_ex__(self, protocol)
    return tuple(
        tuple(_without_state(item) for item in part) if isinstance(part, tuple) else _without_state(part)
        for part in parts
    )


def _without_state(value: Any) -> Any:
    if isinstance(value, dict) and STATE in value:
        return {key: item for key, item in value.items() if key != STATE}
    return value.__dict__[PLAIN] if isinstance(value, type) and PLAIN in value.__dict__ else value


def _deepcopy_plain(self: Any, memo: dict[int, Any]) -> Any:
    copied = _plain_class(type(self)).__deepcopy__(self, memo)  # type: ignore[attr-defined]
    unwrap(copied)
    return copied


def _adopt_block_metadata(base: type, made: type) -> None:
    """Let diffusers' hooks (LayerSkip, guiders) find a wrapped block in their table of block classes."""
    try:
        from diffusers.hooks._helpers import TransformerBlockRegistry
    except ImportError:  # a diffusers without that table has nothing to look up
        return
    try:
        known = TransformerBlockRegistry.get(base)
    except ValueError:
        return
    TransformerBlockRegistry.register(made, dataclasses.replace(known))
