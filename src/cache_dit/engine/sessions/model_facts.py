"""What a transformer and a run are like, so that a plan can tell whether it holds for them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.scope import latent_tokens

logger = logging.getLogger(__name__)

SAMPLES = 64
"""How many values of each tensor go into a digest."""


def weights_digest(module: torch.nn.Module) -> str | None:
    """A digest of a transformer's weights: names, shapes, dtypes, and some values of each tensor.

    It is the same on every device, after saving and loading, and with a cache on. Another dtype, a LoRA, quantization
    and fine-tuning change it, though a change of a few values alone may fall between those that are looked at. The
    values travel to the host together, once for each device and dtype.

    Returns:
        32 hexadecimal digits, or None where values cannot be read (weights on the meta device).
    """
    parts: list[torch.Tensor] = []
    found = hashlib.sha256()
    for name, tensor in _tensors(module):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {type(tensor).__name__};".encode())
        parts += map(_samples, _plain(tensor))
    if any(part.is_meta for part in parts):
        return None
    values: list[bytes] = [b""] * len(parts)
    for device, dtype in {(part.device, part.dtype) for part in parts}:
        places = [place for place, part in enumerate(parts) if (part.device, part.dtype) == (device, dtype)]
        together = torch.cat([parts[place] for place in places]).cpu().view(torch.uint8).numpy().tobytes()
        begin = 0
        for place in places:
            end = begin + len(parts[place]) * dtype.itemsize
            values[place], begin = together[begin:end], end
    found.update(b"".join(values))
    return found.hexdigest()[:32]


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers that are saved, by their names, in the order of these; wrappers by `compile` not told."""
    inner = getattr(module, "_orig_mod", module)
    found = inner.state_dict(keep_vars=True)
    for name in sorted(found):
        if isinstance(found[name], torch.Tensor):
            yield name.replace("_orig_mod.", ""), found[name].detach()


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a tensor consists of: itself, or those inside a quantized one."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        yield tensor
    elif hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
    else:
        yield tensor.as_subclass(torch.Tensor)


def _samples(tensor: torch.Tensor) -> torch.Tensor:
    """At most `SAMPLES` values of a tensor, evenly apart, on its device."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    every = max(tensor.numel() // SAMPLES - 1, 0) | 1  # odd, so that not all of them are of one column
    return tensor.reshape(-1)[::every][:SAMPLES]


def parameter_dtype(module: torch.nn.Module) -> str | None:
    """The dtype of a module's first parameter of a floating dtype, e.g. `"bfloat16"`."""
    dtypes = (parameter.dtype for parameter in module.parameters() if parameter.dtype.is_floating_point)
    return next((str(dtype).removeprefix("torch.") for dtype in dtypes), None)


def scheduler_facts(scheduler: Any) -> dict[str, Any]:
    """What a plan asks of a scheduler, before and in its runs: fields `scheduler` and `shift` of `PlanScope`."""
    shift = getattr(getattr(scheduler, "config", None), "shift", None)
    shift = float(shift) if isinstance(shift, (int, float)) and not isinstance(shift, bool) else None
    return {"scheduler": type(scheduler).__name__, "shift": shift}


def schedule_facts(plan: Plan, scheduler: Any, steps: int | None) -> dict[str, Any]:
    """What a plan asks of the run that a scheduler is about to begin: fields of `PlanScope`.

    Where a scheduler has its noise levels on an accelerator and the plan compares them, they are read back here, once
    for each branch and before the first step.

    Args:
        plan: the plan.
        scheduler: the scheduler, its timesteps set.
        steps: of the run, where they are known.

    Returns:
        `num_inference_steps`, those that are left where the run begins within the schedule (picture to picture), and
        `sigmas`, where it has them.
    """
    begin = getattr(scheduler, "begin_index", None) or 0
    known = steps or getattr(scheduler, "num_inference_steps", None)
    if not isinstance(known, int):
        return {}
    sigmas: Any = getattr(scheduler, "sigmas", None)
    asked = plan.scope.sigmas is not None and plan.scope.resolution is not None
    told = asked and isinstance(sigmas, torch.Tensor) and len(sigmas) >= known
    return {"num_inference_steps": known - begin, "sigmas": sigmas[begin:known].tolist() if told else None}


def transformer_facts(plan: Plan, module: torch.nn.Module | None) -> dict[str, Any]:
    """What a plan asks of a transformer: fields of `PlanScope`. The digest is made only where the plan has one."""
    if module is None:
        return {}
    digest = None
    if plan.scope.weights is not None and (digest := weights_digest(module)) is None:
        logger.warning("cache_dit: weights on the meta device cannot be compared with those of the plan")
    return {"weights": digest, "dtype": parameter_dtype(module)}


def latent_facts(latent: Any) -> dict[str, Any]:
    """What a plan asks of the transformer's first input: field `resolution` of `PlanScope`, where it is a tensor."""
    known = isinstance(latent, torch.Tensor) and latent.dim() > 1
    return {"resolution": latent_tokens(latent.shape)} if known else {}
