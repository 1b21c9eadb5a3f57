"""Rewriting a transformer before its cache is put on: for models of your own, since no built-in one needs it.

The named functors are for code that passes them by name. Blocks are intercepted where they stand, so what a model does
between two blocks goes on as it is, and nothing of it has to move into the blocks.
"""

from __future__ import annotations

import abc
import logging
from typing import Any

from cache_dit.envs import ENV

logger = logging.getLogger(__name__)


class PatchFunctor(abc.ABC):
    """Changes a transformer so that its blocks fit a pattern; ``BlockAdapter(patch_functor=…)`` applies it.

    A subclass writes ``_apply(transformer, *args, **kwargs)``, which changes the transformer and returns it. It may be
    applied again to the same transformer, so it should mark what it has changed.
    """

    def apply(self, transformer: Any, *args: Any, **kwargs: Any) -> Any:
        """The changed transformer; one that is not of diffusers is returned as it is, and a line of log says so.

        With the environment variable ``CACHE_DIT_PATCH_FUNCTOR_DISABLE_DIFFUSERS_CHECK=1`` those are changed too.

        Args:
            transformer: the transformer.
            *args, **kwargs: for the functor.
        """
        if ENV.CACHE_DIT_PATCH_FUNCTOR_DISABLE_DIFFUSERS_CHECK or self.is_from_diffusers(transformer):
            return self._apply(transformer, *args, **kwargs)
        logger.warning(
            "cache_dit: %s is not of diffusers: %s leaves it as it is; set "
            "CACHE_DIT_PATCH_FUNCTOR_DISABLE_DIFFUSERS_CHECK=1 to have it changed",
            type(transformer).__name__,
            type(self).__name__,
        )
        return transformer

    @abc.abstractmethod
    def _apply(self, transformer: Any, *args: Any, **kwargs: Any) -> Any:
        """Change a transformer and return it."""

    @classmethod
    def is_from_diffusers(cls, transformer: Any) -> bool:
        """Whether a transformer's class, or that of a compiled one, is of diffusers."""
        return type(getattr(transformer, "_orig_mod", transformer)).__module__.partition(".")[0] == "diffusers"


class _Unneeded(PatchFunctor):
    """A functor for a model that is cached as it is."""

    def _apply(self, transformer: Any, *args: Any, **kwargs: Any) -> Any:
        return transformer


class ChromaPatchFunctor(_Unneeded):
    """Leaves the transformer as it is: the loop gives each block its modulation."""


class DiTPatchFunctor(_Unneeded):
    """Leaves the transformer as it is: its first block stays where its forward looks for it."""


class FluxPatchFunctor(_Unneeded):
    """Leaves the transformer as it is: a record says how the single blocks take over from the double ones."""


class HiDreamPatchFunctor(_Unneeded):
    """Leaves the transformer as it is: the loop appends the text tokens and cuts them off."""


class HunyuanDiTPatchFunctor(_Unneeded):
    """Leaves the transformer as it is: the loop keeps its long skips."""


class LTX2PatchFunctor(_Unneeded):
    """Leaves the transformer as it is: the sound is its second stream, read by its own name."""


class QwenImageControlNetPatchFunctor(_Unneeded):
    """Leaves the transformer as it is: the loop adds the ControlNet's samples between blocks."""


class WanVACEPatchFunctor(_Unneeded):
    """Leaves the transformer as it is: the loop adds the hints between blocks."""


class ZImageControlNetPatchFunctor(_Unneeded):
    """Leaves the transformer as it is: the loop adds the ControlNet's samples between blocks."""
