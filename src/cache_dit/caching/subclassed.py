"""What a server's subclasses override in the reference and nobody calls here."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

_UNUSED = {"apply_cache", "call_Mn_blocks", "collect_unified_blocks", "compute_or_prune", "create_context"}


class Subclassed:
    """A class that servers subclass: a line of log says which of a subclass's methods are not used.

    The reference calls them to run the blocks. Here blocks decide for themselves where they stand.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if unused := sorted(_UNUSED & vars(cls).keys()):
            logger.warning(
                "cache_dit: %s overrides %s, which is not used: blocks are skipped where they stand",
                cls.__qualname__,
                ", ".join(unused),
            )
