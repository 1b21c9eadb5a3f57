"""What the records say of supported models: names, table and matrix."""

from __future__ import annotations

import json
import re

import diffusers
import pytest
from torch import nn

import cache_dit
from cache_dit.caching import block_adapters
from cache_dit.models import record_of, table
from cache_dit.models.record import records
from tests.kit.claims import LINE, blocks_of, run
from tests.kit.equality import close
from tests.kit.tiny_models import tiny
from tests.kit.toys import static

REFERENCE = re.findall(
    r"\w+",
    """
    Flux Mochi CogVideoX Wan HunyuanVideo QwenImage LTX Allegro CogView3Plus CogView4 Cosmos EasyAnimate SkyReelsV2
    StableDiffusion3 ConsisID DiT Amused Bria Lumina OmniGen PixArt Sana StableAudio VisualCloze AuraFlow Chroma ShapE
    HiDream HunyuanDiT HunyuanDiTPAG Kandinsky5 PRX HunyuanImage ChronoEdit ZImage OvisImage LongCatImage
    """,
)


def test_every_name_of_the_reference_is_a_supported_pipeline() -> None:
    count, names = cache_dit.supported_pipelines()
    assert len(REFERENCE) == 37
    assert set(REFERENCE) <= set(names)
    assert count == len(names) == len(set(names))


def test_an_alias_begins_the_name_of_a_pipeline_of_diffusers() -> None:
    for record in records():
        for alias in record.aliases:
            pipelines = [name for name in dir(diffusers) if name.startswith(alias)]
            assert pipelines, alias


def test_an_alias_has_a_function_that_describes_its_models() -> None:
    adapter = block_adapters.visualcloze_adapter(tiny("FluxTransformer2DModel"))
    assert adapter.blocks_name == [["transformer_blocks", "single_transformer_blocks"]]


def test_the_matrix_has_a_cell_for_each_name_and_says_that_its_models_can_be_cached(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = cache_dit.supported_matrix()
    assert capsys.readouterr().out == f"{text}\n"
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
    assert lines[0][:5] == ["Model", "Cache", "CP", "TP", "Model"]
    assert dict(re.findall(r"\| (\w+) \| (\S) \| \S \| \S ", text)) == dict.fromkeys(
        cache_dit.supported_pipelines()[1], "✔"
    )
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_the_matrix_can_be_had_without_being_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cache_dit.supported_matrix(logging=False).startswith("| Model | Cache |")
    assert capsys.readouterr().out == ""


def test_the_table_is_data_with_one_row_per_record() -> None:
    rows = table()
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows) == len(records())
    wan = next(row for row in rows if row["family"] == "Wan")
    assert wan == {
        "family": "Wan",
        "aliases": ["LucyEdit"],
        "package": "diffusers",
        "transformers": ["WanTransformer3DModel", "WanVACETransformer3DModel"],
        "blocks": ["blocks"],
        "patterns": ["Pattern_2"],
        "chains": [0],
        "separate_cfg": True,
        "cache": True,
        "presets": ["default", "serving"],
    }


def test_a_class_of_the_same_name_from_another_package_is_found() -> None:
    own = type("FluxTransformer2DModel", (nn.Module,), {"__module__": "server.models"})
    assert record_of(own()) is record_of(tiny("FluxTransformer2DModel"))


@pytest.mark.parametrize("name", ["QwenImageTransformer2DModel", "ZImageTransformer2DModel"])
def test_what_nunchaku_derives_from_a_class_of_diffusers_goes_by_its_record(name: str) -> None:
    model = tiny(name)
    derived = type(f"Nunchaku{name}", (type(model),), {})
    assert record_of(derived.__new__(derived)) is record_of(model)


@pytest.mark.parametrize("name", ["NunchakuFluxTransformer2DModelV2", "NunchakuFluxTransformer2dModel"])
def test_nunchakus_flux_has_single_stream_blocks_over_one_sequence(name: str) -> None:
    # It derives from FLUX.1's class, whose record would not fit; of diffusers' own, FLUX.2's blocks are as its own.
    model = tiny("Flux2Transformer2DModel")
    (expected,) = run(model, [0.6])
    flux = diffusers.FluxTransformer2DModel
    quantized = type(name, (flux,), {"forward": type(model).forward, "__module__": "nunchaku.models"})
    assert record_of(quantized.__new__(quantized)).package == "nunchaku"
    model.__class__ = type(name, (type(model),), {"__module__": "nunchaku.models"})
    cache_dit.enable_cache(model, static(LINE, enable_separate_cfg=False))
    assert len(blocks_of(model)) > 3
    assert close(run(model, [0.6] * len(LINE)), expected)
    assert cache_dit.summary(model, logging=False)[0].cached_steps
