"""Models that cannot be cached with sense, and why: ``enable_cache`` refuses them with that reason."""

from __future__ import annotations

from typing import Any

import torch

from cache_dit.engine.subclass import base_of
from cache_dit.models.record import component_names, record_of

_COLLECTS = "it hands out what each of its blocks returned, and a skipped block has nothing of its own to hand out"
_SEVERAL = f"it is several ControlNets, and of each of them: {_COLLECTS}"
_U_NET = "in a U-Net later blocks read what each of the earlier ones returned, and sizes change from block to block"
_ADDS = "it is a part that is added to the blocks of a U-Net, and has no forward of its own"
_INSIDE = "it stands inside a U-Net, which calls it for one of its many places, and makes no step of its own"

#: Class name -> why the cache refuses it. Subclasses count.
UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(
        (
            "CosmosControlNetModel",
            "FluxControlNetModel",
            "HunyuanDiT2DControlNetModel",
            "QwenImageControlNetModel",
            "SD3ControlNetModel",
            "SanaControlNetModel",
            "ZImageControlNetModel",
        ),
        f"{_COLLECTS}. The transformer that it steers can be cached",
    ),
    **dict.fromkeys(
        (
            "FluxMultiControlNetModel",
            "HunyuanDiT2DMultiControlNetModel",
            "QwenImageMultiControlNetModel",
            "SD3MultiControlNetModel",
        ),
        f"{_SEVERAL}. The transformer that they steer can be cached",
    ),
    **dict.fromkeys(("ControlNetModel", "ControlNetUnionModel", "SparseControlNetModel"), _COLLECTS),
    **dict.fromkeys(("MultiControlNetModel", "MultiControlNetUnionModel"), _SEVERAL),
    **dict.fromkeys(
        (
            "DreamLiteUNetModel",
            "I2VGenXLUNet",
            "Kandinsky3UNet",
            "StableCascadeUNet",
            "UNet1DModel",
            "UNet2DConditionModel",
            "UNet2DModel",
            "UNet3DConditionModel",
            "UNetControlNetXSModel",
            "UNetMotionModel",
            "UNetSpatioTemporalConditionModel",
        ),
        _U_NET,
    ),
    **dict.fromkeys(("ControlNetXSAdapter", "MotionAdapter"), _ADDS),
    **dict.fromkeys(("DreamLiteTransformer2DModel", "TransformerTemporalModel"), _INSIDE),
    "MiniMaxMusic3RVQDepthDecoder": "it writes the tokens of one frame after the other and makes no denoising steps",
    "RFD4ProteinaTransformer": (
        "with recycling its blocks run several times in a forward, and between them the model updates pairs of "
        "residues, which the blocks do not return"
    ),
}


_MISSING = object()
_HOW_TO_DESCRIBE = (
    "call cache_dit.inspect(transformer, *args, **kwargs) with its forward's arguments, which shows the "
    "BlockAdapter(...) to pass instead. cache_dit.supported_pipelines() lists the models with a record"
)


def refusal_of(pipe_or_module: Any) -> str | None:
    """Why a module, or the model that a pipeline denoises with, cannot be cached; None where nothing is known of it."""
    if not isinstance(pipe_or_module, torch.nn.Module):
        held = (getattr(pipe_or_module, name, None) for name in ("transformer", "unet"))
        return next((refusal_of(model) for model in held if isinstance(model, torch.nn.Module)), None)
    module: Any = base_of(getattr(pipe_or_module, "_orig_mod", pipe_or_module))
    name = next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in UNSUPPORTED), None)
    return None if name is None else f"{name} cannot be cached: {UNSUPPORTED[name]}"


def unrecorded(pipe_or_module: Any) -> str:
    """Why there is no description of a module, or of the model that a pipeline denoises with, and what to pass."""
    refusal = refusal_of(pipe_or_module)
    if refusal is not None:
        return refusal
    if isinstance(pipe_or_module, torch.nn.Module):
        return _unrecorded_module(pipe_or_module, None)
    pipe = type(pipe_or_module).__name__
    for attribute in (name for name in component_names() if "transformer" in name):
        value = getattr(pipe_or_module, attribute, _MISSING)
        if isinstance(value, torch.nn.Module):
            return _unrecorded_module(value, f"{pipe}.{attribute}")
        if value is not _MISSING:
            what = "None" if value is None else f"a {type(value).__name__}, no torch.nn.Module"
            return f"{pipe}.{attribute} is {what}: load the transformer and set it before enable_cache"
    return f"there is no record of {pipe}: {_HOW_TO_DESCRIBE}"


def _unrecorded_module(module: torch.nn.Module, place: str | None) -> str:
    """The same for a module; ``place`` says where it was found, as in ``FluxPipeline.transformer``."""
    module = base_of(getattr(module, "_orig_mod", module))
    name = type(module).__name__
    for path, part in module.named_modules():
        if path and record_of(part) is not None:
            held = f"{name} around the {type(part).__name__} in its {path}"
            if place is None:
                return f"this is a {held}: pass that"
            return f"{place} is a {held}: set {place.partition('.')[2]} to that before enable_cache"
    where = "" if place is None else f", which is {place}"
    return f"there is no record of {name}{where}: {_HOW_TO_DESCRIBE}"
