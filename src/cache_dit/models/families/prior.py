"""Priors of Shap-E, Kandinsky 2 and unCLIP: blocks over the tokens of an embedding."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

PRIOR = register_model(
    ModelRecord(
        name="ShapE",
        transformers=("PriorTransformer",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_3),),
        components=("prior", "prior_prior"),
        aliases=("KandinskyPrior", "KandinskyV22Prior"),
    )
)
