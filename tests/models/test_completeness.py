"""Every model of diffusers that one could want to cache is either known or refused with a reason."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import diffusers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, ModelMixin, SanaControlNetModel, UNet2DModel
from diffusers.models import controlnets, transformers, unets
from torch import nn

import cache_dit
from cache_dit import UnsupportedModelError
from cache_dit.models import record_of
from cache_dit.models.record import _records
from cache_dit.models.unsupported import UNSUPPORTED, refusal_of
from tests.kit.row import HEADS


def models_of(package: ModuleType) -> set[str]:
    """The names of the public models that are written in a package of diffusers."""
    names = (file.name for file in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))
    files = [importlib.import_module(name) for name in names if not name.endswith("_flax")]  # until diffusers 0.36
    found = (cls for file in files for _, cls in inspect.getmembers(file, inspect.isclass))
    models = {
        cls.__name__ for cls in found if issubclass(cls, ModelMixin) and cls.__module__.startswith(package.__name__)
    }
    return {name for name in models if hasattr(diffusers, name)}


@pytest.mark.parametrize("package", [transformers, controlnets, unets], ids=lambda package: package.__name__)
def test_every_model_of_diffusers_has_a_record_or_a_reason_why_not(package: ModuleType) -> None:
    new = models_of(package) - _records.keys() - UNSUPPORTED.keys()
    gone = {name for name in (*_records, *UNSUPPORTED) if not hasattr(diffusers, name)}
    assert not new, (
        f"diffusers {diffusers.__version__} has {', '.join(sorted(new))}: write a record in cache_dit/models, or a "
        f"reason in cache_dit/models/unsupported.py. It lacks {', '.join(sorted(gone)) or 'none that is known'}."
    )


def test_no_model_is_both_known_and_refused() -> None:
    assert not _records.keys() & UNSUPPORTED.keys()


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_refused_is_refused_with_its_reason(name: str) -> None:
    module = type(f"My{name}", (type(name, (nn.Module,), {}),), {})()
    assert record_of(module) is None
    with pytest.raises(UnsupportedModelError) as caught:
        cache_dit.enable_cache(module)
    assert str(caught.value) == f"{name} cannot be cached: {UNSUPPORTED[name]}"


def test_a_controlnet_is_no_transformer_of_its_family() -> None:
    model = SanaControlNetModel(
        **HEADS,
        in_channels=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=4,
    )
    classes = [type(module) for module in model.modules()]
    for module in (model, torch.compile(model)):
        with pytest.raises(UnsupportedModelError, match="SanaControlNetModel cannot be cached: it hands out what each"):
            cache_dit.enable_cache(module)
    assert [type(module) for module in model.modules()] == classes


def test_a_pipeline_around_a_u_net_is_refused_with_the_reason_why_that_is() -> None:
    unet = UNet2DModel(
        block_out_channels=(4, 4),
        norm_num_groups=2,
        attention_head_dim=2,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    with pytest.raises(UnsupportedModelError, match="UNet2DModel cannot be cached: in a U-Net later blocks read"):
        cache_dit.enable_cache(DDPMPipeline(unet=unet, scheduler=DDPMScheduler()))


def test_of_other_modules_no_reason_is_given() -> None:
    assert refusal_of(nn.Linear(1, 1)) is None
    assert refusal_of(object()) is None
    with pytest.raises(UnsupportedModelError, match="no record of Linear"):
        cache_dit.enable_cache(nn.Linear(1, 1))
