"""On several ranks: each holds a part of the tokens, all decide alike, and the result is that of one process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from diffusers import FluxTransformer2DModel, WanTransformer3DModel

import cache_dit
from tests.kit.equality import close

STEPS = 6
RANKS = 2


def flux() -> FluxTransformer2DModel:
    """Its plan splits the tokens at the transformer, outside of the chain."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    ).eval()


def flux_inputs(step: int) -> dict[str, torch.Tensor]:
    """16 image tokens and 8 text tokens that drift from step to step."""
    generator = torch.Generator().manual_seed(0)
    drift = 1 + 0.05 * step
    return {
        "hidden_states": torch.randn(1, 16, 4, generator=generator) * drift,
        "encoder_hidden_states": torch.randn(1, 8, 32, generator=generator),
        "pooled_projections": torch.randn(1, 32, generator=generator),
        "timestep": torch.tensor([1 - step / STEPS]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(8, 3),
    }


def wan() -> WanTransformer3DModel:
    """Its plan splits the tokens at the first block, inside of the chain."""
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=4,
        rope_max_seq_len=32,
    ).eval()


def wan_inputs(step: int) -> dict[str, torch.Tensor]:
    """2 × 4 × 4 video tokens that drift from step to step."""
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 4, 2, 8, 8, generator=generator) * (1 + 0.05 * step),
        "timestep": torch.tensor([1000.0 - 100 * step]),
        "encoder_hidden_states": torch.randn(1, 8, 16, generator=generator),
    }


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[int], dict[str, torch.Tensor]]]] = {
    "flux": (flux, flux_inputs),
    "wan": (wan, wan_inputs),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "measured": {
        "Fn_compute_blocks": 1,
        "max_warmup_steps": 1,
        "residual_diff_threshold": 0.5,
        "max_continuous_cached_steps": 2,
    },
    "static": {
        "Fn_compute_blocks": 0,
        "steps_computation_mask": [1, 0, 1, 0, 0, 1],
        "steps_computation_policy": "static",
    },
}


def run(family: str, config: str, *, shard: bool, **changes: Any) -> tuple[list[torch.Tensor], dict[str, str]]:
    """A request on a cached transformer: its outputs, and which steps were computed."""
    make, inputs = FAMILIES[family]
    transformer = make()
    if shard:
        from diffusers import ContextParallelConfig

        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS))
    cache_dit.enable_cache(transformer, cache_dit.DBCacheConfig(**{**CONFIGS[config], **changes}))
    with torch.no_grad():
        outputs = [
            transformer(**inputs(step), return_dict=False)[0] * 1 for step in range(STEPS)
        ]  # waits for the gather
    return outputs, cache_dit.summary(transformer, logging=False)[0].steps_line


def rank_main(rank: int, port: int, folder: str) -> None:
    """What each rank runs."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(RANKS))
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: RANKS  # diffusers takes the rank modulo this, and CPUs count as none
    torch.distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    results = {(family, config): run(family, config, shard=True) for family in FAMILIES for config in CONFIGS}
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Any]]:
    """Every family under every configuration, on two gloo ranks."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(rank_main, (port, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("config", list(CONFIGS))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_ranks_decide_alike_and_give_what_one_process_gives(
    family: str, config: str, on_ranks: list[dict[tuple[str, str], Any]]
) -> None:
    # Where the first block splits the tokens, it is computed even if Fn_compute_blocks is 0.
    alone, lines = run(
        family, config, shard=False, Fn_compute_blocks=1 if family == "wan" else CONFIGS[config]["Fn_compute_blocks"]
    )
    assert all("C" in line for line in lines.values())
    for results in on_ranks:
        outputs, lines_together = results[family, config]
        assert lines_together == lines
        assert close(outputs, alone)
