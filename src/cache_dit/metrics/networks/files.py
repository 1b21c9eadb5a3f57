"""Where the networks of the metrics are found. Nothing is ever downloaded unasked."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache_dit.errors import ConfigError, MissingModelError

if TYPE_CHECKING:
    import torch

#: The file that makes a folder a model for transformers.
CONFIG_FILE = "config.json"


@dataclass(frozen=True, kw_only=True)
class Network:
    """Weights that a metric needs.

    Attributes:
        name: for messages.
        variable: environment variable with their file or folder.
        files: names that the file has, the preferred one first; where a folder is wanted, the file that it must hold.
        get: how to get them, for messages.
        repositories: on the hub, for its local cache; the preferred one first.
        places: other folders where programs keep them.
        folder: whether a folder is wanted (the configuration and weights of transformers), not one file.
    """

    name: str
    variable: str
    files: tuple[str, ...]
    get: str
    repositories: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    folder: bool = False


LPIPS_FETCH = "run `python -m cache_dit.metrics.networks fetch lpips` once (62 MB)"

LPIPS = {
    "alex": Network(
        name="the AlexNet of LPIPS",
        variable="CACHE_DIT_LPIPS_MODEL_DIR",
        files=("lpips-alex.safetensors", "alexnet-owt-7be5be79.pth"),
        get=f"{LPIPS_FETCH}, or take torchvision's alexnet-owt-7be5be79.pth",
    ),
    "vgg": Network(
        name="the VGG16 of LPIPS",
        variable="CACHE_DIT_LPIPS_MODEL_DIR",
        files=("lpips-vgg.safetensors", "vgg16-397923af.pth"),
        get=f"{LPIPS_FETCH}, or take torchvision's vgg16-397923af.pth",
    ),
}
INCEPTION = Network(
    name="the InceptionV3 of FID",
    variable="CACHE_DIT_INCEPTION_MODEL_DIR",
    # one file under two names: pytorch-fid's and torch-fidelity's
    files=("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
    get="take pt_inception-2015-12-05-6726825d.pth (91 MB) from the release fid_weights of mseitzer/pytorch-fid",
)
CLIP = Network(
    name="the CLIP model of the CLIP score",
    variable="CLIP_MODEL_DIR",
    files=(CONFIG_FILE,),
    repositories=("laion/CLIP-ViT-g-14-laion2B-s12B-b42K",),
    folder=True,
    get="run `hf download laion/CLIP-ViT-g-14-laion2B-s12B-b42K`, or take another CLIP model in transformers' form",
)
IMAGE_REWARD = Network(
    name="the model of ImageReward",
    variable="IMAGEREWARD_MODEL_DIR",
    files=("ImageReward.pt", "ImageReward-v1.0.pt"),
    repositories=("THUDM/ImageReward",),
    places=("~/.cache/ImageReward",),  # the package image-reward
    get="run `hf download THUDM/ImageReward ImageReward.pt` (1.8 GB)",
)
BERT_TOKENIZER = Network(
    name="the tokenizer of ImageReward (bert-base-uncased)",
    variable="CACHE_DIT_BERT_MODEL_DIR",
    files=("vocab.txt",),
    repositories=("google-bert/bert-base-uncased", "bert-base-uncased"),
    get="run `hf download google-bert/bert-base-uncased vocab.txt`, or put its vocab.txt beside ImageReward.pt",
)
NETWORKS = (*LPIPS.values(), INCEPTION, CLIP, IMAGE_REWARD, BERT_TOKENIZER)


def own_folder() -> Path:
    """Where fetched weights are kept: ``metrics`` in this package's folder of the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "cache-dit", "metrics")


def find(network: Network, argument: str | os.PathLike[str] | None = None) -> Path:
    """The file (or folder) with the weights of `network`.

    Looked at in this order: `argument`, the network's environment variable, this package's folder in the user's cache,
    torch hub's cache, the network's own places, the hub's cache. The first two may be a file, or a folder that holds
    it; they may also be the name of a repository that the hub's cache has. Where one of them is given, nothing after it
    is looked at.

    Raises:
        MissingModelError: none of them has it; the message says what to get and where to put it.
    """
    for source, given in (("the argument", argument), (network.variable, os.environ.get(network.variable) or None)):
        if given is not None:
            found = _in_place(network, Path(given).expanduser()) or _in_hub_cache(network, os.fspath(given))
            if found is None:
                raise MissingModelError(_missing(network, [f"{os.fspath(given)!r} (from {source})"]))
            return found
    places = [] if network.folder else [own_folder(), _torch_hub_folder(), *map(Path, network.places)]
    for place in places:
        if found := _in_place(network, place.expanduser()):
            return found
    for repository in network.repositories:
        if found := _in_hub_cache(network, repository):
            return found
    raise MissingModelError(_missing(network, [*map(str, places), *["the hub's cache"] * bool(network.repositories)]))


def chosen_device(device: str | torch.device | None) -> torch.device:
    """`device`, or CUDA if it is there, or the CPU."""
    import torch

    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file of safetensors or of PyTorch, on the CPU; nothing that the file may bring besides is run.

    Raises:
        ConfigError: it is damaged, or holds anything but tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read as a file of weights: {error}") from error
    if not (isinstance(loaded, dict) and all(isinstance(tensor, torch.Tensor) for tensor in loaded.values())):
        raise ConfigError(f"{path} does not hold named tensors alone: expected the state dictionary of a network")
    return dict(loaded)


def _missing(network: Network, looked: Sequence[str]) -> str:
    what = "folder with a " if network.folder else ""
    return (
        f"{network.name} is missing: there is no {what}{' or '.join(network.files)} in {', '.join(looked)}. "
        f"To get it, {network.get}; then pass its path, or set {network.variable} to the file or its folder"
    )


def _in_place(network: Network, path: Path) -> Path | None:
    """The weights at `path`, a file or a folder."""
    if path.is_file():
        return None if network.folder else path
    found = next((path / name for name in network.files if (path / name).is_file()), None)
    return path if found and network.folder else found


def _torch_hub_folder() -> Path:
    import torch

    return Path(torch.hub.get_dir(), "checkpoints")


def _in_hub_cache(network: Network, repository: str) -> Path | None:
    """What the hub's local cache has of `repository`."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in network.files:
        try:
            found = try_to_load_from_cache(repository, name)
        except HFValidationError:  # not a repository's name: a path that is not there
            return None
        if isinstance(found, str):
            return Path(found).parent if network.folder else Path(found)
    return None
