"""Models that cannot be cached with sense, and why: ``enable_cache`` refuses them with that reason."""

from __future__ import annotations

from typing import Any

import torch

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


def refusal_of(pipe_or_module: Any) -> str | None:
    """Why a module, or the model that a pipeline denoises with, cannot be cached; None where nothing is known of it."""
    if not isinstance(pipe_or_module, torch.nn.Module):
        held = (getattr(pipe_or_module, name, None) for name in ("transformer", "unet"))
        return next((refusal_of(model) for model in held if isinstance(model, torch.nn.Module)), None)
    module: Any = getattr(pipe_or_module, "_orig_mod", pipe_or_module)
    name = next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in UNSUPPORTED), None)
    return None if name is None else f"{name} cannot be cached: {UNSUPPORTED[name]}"
