"""The prior, as Kandinsky uses it: over text, an image's embedding, and a token that becomes the answer."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def prior(batch: int, side: int, timestep: float) -> Inputs:
    # As many text tokens as the model knows places; its answer is one embedding, whatever the side is.
    return {
        "hidden_states": normal(batch, 8, seed=side),
        "timestep": torch.tensor(round(999 * timestep)),
        "proj_embedding": normal(batch, 8, seed=1),
        "encoder_hidden_states": normal(batch, TEXT, 8, seed=2),
        "attention_mask": (torch.arange(TEXT) < TEXT - 1).expand(batch, TEXT),
    }


ROWS = {
    "PriorTransformer": Tiny({**HEADS, "num_layers": 5, "embedding_dim": 8, "num_embeddings": TEXT}, prior),
}
