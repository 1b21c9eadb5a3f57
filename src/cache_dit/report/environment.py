"""What a bug report needs: versions, devices and settings of this process, as data and as text."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from typing import Any

from cache_dit.report.machine import cores, memory_gib, processor, version
from cache_dit.version import REFERENCE_API, __version__

PACKAGES = (
    *("diffusers", "transformers", "accelerate", "peft", "torchao", "bitsandbytes", "safetensors", "huggingface-hub"),
    *("tokenizers", "numpy", "pillow", "pyyaml", "rich", "packaging", "triton", "xformers", "flash-attn"),
)

#: Of environment variables, those with this beginning are ours.
PREFIX = "CACHE_DIT_"
#: Further ones that change what this package, or torch below it, does.
VARIABLES = (
    *("CLIP_MODEL_DIR", "IMAGEREWARD_MODEL_DIR", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_LOGS"),
    *("TORCHDYNAMO_DISABLE", "TORCHINDUCTOR_CACHE_DIR"),
)


def describe_environment() -> dict[str, Any]:
    """The environment of this process as plain data, for JSON.

    Returns:
        ``cache_dit`` and ``reference_api`` (versions), ``python``, ``system``, ``cpu``, ``torch`` (with ``error``
        alone where it cannot be imported), ``devices`` (a list), ``packages`` and ``variables`` (those that are set).
    """
    torch, devices = _torch()
    return {
        "cache_dit": __version__,
        "reference_api": REFERENCE_API,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "cpu": {
            "name": processor(),
            "cores": cores(),
            "isa": torch.get("cpu_capability"),
            "architecture": platform.machine(),
            "memory_gib": memory_gib(),
        },
        "torch": torch,
        "devices": devices,
        "packages": {name: version(name) for name in PACKAGES},
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIX) or name in VARIABLES
        },
    }


def _torch() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What torch is, and the devices that it sees; a torch that cannot be imported is what the report is about."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"version": version("torch"), "error": str(error)}, []
    facts = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "git": torch.version.git_version,
        "debug": torch.version.debug,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "distributed": torch.distributed.is_available(),
    }
    return facts, list(_devices(torch))


def _devices(torch: Any) -> Iterator[dict[str, Any]]:
    """The accelerators: CUDA and ROCm GPUs, NPUs, XPUs; whatever torch knows."""
    if not torch.accelerator.is_available():
        return
    kind = torch.accelerator.current_accelerator().type
    module = torch.get_device_module(kind)
    for index in range(torch.accelerator.device_count()):
        found: dict[str, Any] = {"device": f"{kind}:{index}"}
        if hasattr(module, "get_device_properties"):
            properties = module.get_device_properties(index)
            found["name"] = properties.name
            found["memory_gib"] = round(properties.total_memory / 2**30, 1)
        if hasattr(module, "mem_get_info"):
            found["free_gib"] = round(module.mem_get_info(index)[0] / 2**30, 1)
        if kind == "cuda" and not torch.version.hip:
            found["capability"] = ".".join(map(str, module.get_device_capability(index)))
        yield found


def lines(environment: Mapping[str, Any]) -> list[str]:
    """The environment as text, a line for each entry, as a bug report quotes it."""
    devices = [(device["device"], _device_line(device)) for device in environment["devices"]]
    rows = [
        ("cache_dit", f"{environment['cache_dit']} (API of cache-dit {environment['reference_api']})"),
        ("Python", environment["python"]),
        ("system", environment["system"]),
        ("CPU", _cpu_line(environment["cpu"])),
        ("torch", _torch_line(environment["torch"])),
        *(devices or [("devices", "CPU alone")]),
        *environment["packages"].items(),
        *(environment["variables"].items() or [("variables", "none is set")]),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _cpu_line(cpu: Mapping[str, Any]) -> str:
    memory = cpu["memory_gib"] and f"{cpu['memory_gib']} GiB"
    return _joined(cpu["name"], f"{cpu['cores']} cores", cpu["isa"], cpu["architecture"], memory)


def _torch_line(torch: Mapping[str, Any]) -> str:
    if "error" in torch:
        return f"{torch['version']}, cannot be imported: {torch['error']}"
    builds = [f"{name} {torch[name]}" for name in ("cuda", "hip") if torch[name]]
    debug = "debug build" if torch["debug"] else None
    return _joined(torch["version"], *builds, debug, f"git {torch['git'][:8]}", f"{torch['threads']} threads")


def _device_line(device: Mapping[str, Any]) -> str:
    memory = "memory_gib" in device and f"{device['memory_gib']} GiB"
    free = "free_gib" in device and f"{device['free_gib']} GiB free"
    capability = "capability" in device and f"capability {device['capability']}"
    return _joined(device.get("name"), memory, free, capability)


def _joined(*parts: Any) -> str:
    return ", ".join(part for part in parts if part)
