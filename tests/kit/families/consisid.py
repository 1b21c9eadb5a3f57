"""ConsisID: blocks 0, 2 and 4 of 6 are followed by attention to the face."""

from tests.kit.families.cogvideox import ROWS as COGVIDEOX
from tests.kit.families.cogvideox import cogvideox
from tests.kit.row import Inputs, Tiny, normal


def consisid(batch: int, side: int, timestep: float) -> Inputs:
    return {
        **cogvideox(batch, side, timestep),
        "id_cond": normal(1, 6, seed=2),
        "id_vit_hidden": [normal(1, 4, 8, seed=3 + scale) for scale in range(2)],
    }


ROWS = {
    "ConsisIDTransformer3DModel": Tiny(
        {
            **COGVIDEOX["CogVideoXTransformer3DModel"].config,
            "num_layers": 6,
            "is_train_face": True,
            "cross_attn_dim_head": 8,
            "cross_attn_num_heads": 2,
            "LFE_id_dim": 6,
            "LFE_vit_dim": 8,
            "LFE_depth": 2,
            "LFE_dim_head": 4,
            "LFE_num_heads": 2,
            "LFE_num_id_token": 2,
            "LFE_num_querie": 3,
            "LFE_output_dim": 10,  # two thirds of the blocks' width
            "LFE_ff_mult": 2,
            "LFE_num_scale": 2,
        },
        consisid,
    ),
}
