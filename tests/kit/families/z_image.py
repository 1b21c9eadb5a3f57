"""Z-Image, which is called with lists of pictures and prompts."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal


def z_image(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "x": list(normal(batch, 4, 1, 2 * side, 2 * side)),
        "t": torch.full((batch,), 1 - timestep),
        "cap_feats": list(normal(batch, TEXT, 12, seed=1)),
    }


ROWS = {
    "ZImageTransformer2DModel": Tiny(
        {
            "in_channels": 4,
            "dim": 16,
            "n_layers": 5,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 12,
            "axes_dims": [2, 2, 4],
            "axes_lens": [128, 16, 16],
        },
        z_image,
    ),
}
