"""LongCat-Image."""

from tests.kit.row import HEADS, Tiny, packed

ROWS = {
    "LongCatImageTransformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 8,
            "num_layers": 3,
            "num_single_layers": 3,
            "joint_attention_dim": 12,
            "axes_dims_rope": [2, 2, 4],
        },
        packed,
    ),
}
