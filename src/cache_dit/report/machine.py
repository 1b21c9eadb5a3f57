"""A description of the machine that measured something: without it, a time says nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("cache-dit", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Machine:
    """What measured, without a name or an address by which it could be found.

    Args:
        device: what the model ran on, e.g. the name of a GPU, or of the processor.
        system: operating system and architecture.
        cores: logical processor cores that this process may use.
        threads: threads that torch computes with.
        memory_gib: main memory, in GiB; None where the system does not tell.
        load: processes that wanted to run in the minute before; None where the system does not tell.
        versions: versions of Python and of the packages that matter.
    """

    device: str
    system: str
    cores: int
    threads: int
    memory_gib: float | None
    load: float | None
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        memory = "" if self.memory_gib is None else f", {self.memory_gib:.0f} GiB"
        load = "" if self.load is None else f", load {self.load:.1f} before"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        used = f"{_counted(self.cores, 'core')}, {_counted(self.threads, 'thread')}{memory}"
        return f"{self.device}, {used}, {self.system}{load}; {versions}"


def describe_machine(device: str | torch.device = "cpu") -> Machine:
    """The machine that this process runs on.

    Args:
        device: where the model runs.
    """
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return Machine(
        device=name,
        system=f"{platform.system()} {platform.machine()}",
        cores=cores(),
        threads=torch.get_num_threads(),
        memory_gib=memory_gib(),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def cores() -> int:
    """Logical processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name as the system gives it; Linux tells it in /proc only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine() or "unknown processor"


def memory_gib() -> float | None:
    """Main memory in GiB; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or one that does not tell
        return None


def version(package: str) -> str:
    """The version of an installed package, or that there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
