"""aMUSEd: the fewer tokens are masked, the later the step."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal

TOKENS, MASK = 20, 20


def amused(batch: int, side: int, timestep: float) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    known = torch.randint(TOKENS, (batch, side, side), generator=generator)
    masked = torch.rand(batch, side, side, generator=generator) < timestep
    return {
        "input_ids": known.masked_fill(masked, MASK),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "pooled_text_emb": normal(batch, 12, seed=2),
        "micro_conds": torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0]]).expand(batch, -1),
    }


ROWS = {
    "UVit2DModel": Tiny(
        {
            "hidden_size": 16,
            "cond_embed_dim": 12,
            "micro_cond_encode_dim": 4,
            "micro_cond_embed_dim": 20,
            "encoder_hidden_size": 12,
            "vocab_size": TOKENS + 1,
            "codebook_size": TOKENS,
            "in_channels": 8,
            "block_out_channels": 8,
            "num_res_blocks": 1,
            "block_num_heads": 2,
            "num_hidden_layers": 5,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "sample_size": 4,
        },
        amused,
    ),
}
