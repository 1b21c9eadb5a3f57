"""ConsisID: CogVideoX's blocks, with attention to a face between them that idles while they are skipped."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from cache_dit.engine.adapters.block_adapter import BlockAdapter
from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model


@dataclass(frozen=True)
class _ConsisID(ModelRecord):
    """A record whose idle modules are missing in transformers made with ``is_train_face=False``."""

    def adapter(self, transformers: list[nn.Module], pipe: Any = None) -> BlockAdapter:
        adapter = super().adapter(transformers, pipe)
        if not all(hasattr(transformer, name) for transformer in transformers for name in self.idle):
            adapter.idle = {}
        return adapter


CONSISID = register_model(
    _ConsisID(
        name="ConsisID",
        transformers=("ConsisIDTransformer3DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_0),),
        idle={"perceiver_cross_attention": "hidden_states"},
    )
)
