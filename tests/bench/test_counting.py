"""Work is what torch itself counts in the blocks, and falls by just what a method leaves out."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxTransformer2DModel, PyramidAttentionBroadcastConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.counting import WorkMeter

DOUBLE, SINGLE, HIDDEN, IMAGE, TEXT = 2, 3, 64, 16, 5
ALL = IMAGE + TEXT


@pytest.fixture
def transformer() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=8,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=16,
        num_attention_heads=HIDDEN // 16,
        joint_attention_dim=12,
        pooled_projection_dim=12,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    )
    return model.eval().requires_grad_(False)


def call(model: FluxTransformer2DModel, batch: int = 1) -> None:
    with model.cache_context("cond"), torch.no_grad():
        model(
            hidden_states=torch.ones(batch, IMAGE, 8),
            encoder_hidden_states=torch.ones(batch, TEXT, 12),
            pooled_projections=torch.ones(batch, 12),
            timestep=torch.ones(batch),
            img_ids=torch.zeros(IMAGE, 3),
            txt_ids=torch.zeros(TEXT, 3),
        )


def measured(model: FluxTransformer2DModel, batch: int = 1) -> WorkMeter:
    with WorkMeter(model) as meter:
        call(model, batch)
    return meter


def test_work_is_what_torch_counts_inside_the_blocks(transformer: FluxTransformer2DModel) -> None:
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # torch does not count the fused attention on a processor
        meter = measured(transformer, batch=2)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    blocks = [count for name, count in flops.items() if "transformer_blocks." in name and name.count(".") == 2]
    assert len(blocks) == DOUBLE + SINGLE
    assert 2 * meter.work == sum(blocks)


def test_attention_is_all_tokens_to_all_tokens_whether_they_are_projected_together_or_apart(
    transformer: FluxTransformer2DModel,
) -> None:
    assert measured(transformer).attention == (DOUBLE + SINGLE) * 2 * ALL**2 * HIDDEN


def test_a_batch_of_two_counts_twice(transformer: FluxTransformer2DModel) -> None:
    one, two = measured(transformer), measured(transformer, batch=2)
    assert one.blocks == DOUBLE + SINGLE
    assert (two.work, two.attention, two.blocks) == tuple(2 * n for n in (one.work, one.attention, one.blocks))


def test_a_step_that_skips_all_blocks_but_the_first_costs_the_first(transformer: FluxTransformer2DModel) -> None:
    first = transformer.transformer_blocks[0]
    per_block = measured_by_block(transformer)
    transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    call(transformer)
    skipped = measured(transformer)
    assert skipped.blocks == 1
    assert skipped.work == per_block[id(first)]


def measured_by_block(transformer: FluxTransformer2DModel) -> dict[int, int]:
    """The work of each block, as it grows from one block's start to the next one's."""
    with WorkMeter(transformer) as meter:
        found: dict[int, int] = {}
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        hooks = [
            block.register_forward_hook(lambda module, *_: found.update({id(module): meter.work})) for block in blocks
        ]
        call(transformer)
        for hook in hooks:
            hook.remove()
    ends = list(found.values())
    return {name: end - start for name, end, start in zip(found, ends, [0, *ends[:-1]], strict=True)}


def test_a_step_that_skips_attention_costs_the_rest_of_each_block(transformer: FluxTransformer2DModel) -> None:
    full = measured(transformer)
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: 500,
    )
    transformer.enable_cache(config)
    call(transformer)
    skipped = measured(transformer)
    joint, alone = 4 * ALL * HIDDEN**2, 3 * ALL * HIDDEN**2  # a single block's own output layer is not its attention's
    assert full.work - skipped.work == full.attention + DOUBLE * joint + SINGLE * alone
    assert skipped.attention == 0
    assert skipped.blocks == full.blocks


def test_nothing_is_counted_after_it_is_removed(transformer: FluxTransformer2DModel) -> None:
    meter = measured(transformer)
    before = meter.work
    call(transformer)
    assert meter.work == before > 0
    meter.reset()
    assert (meter.work, meter.attention, meter.blocks) == (0, 0, 0)
