"""The demo model as a pipeline with defaults of its own."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from cache_dit.errors import ConfigError, MissingModelError

#: Where the trained model lies: a folder that ``DiffusionPipeline.from_pretrained`` loads.
MODEL_FOLDER = Path(__file__).parent / "model"

_RECOMMENDED = "cache_dit_demo.json"
_SIZE = {"height": 64, "width": 64}


class _EffectiveSignature:
    """What `inspect.signature` finds on a demo pipeline: all arguments of its call, with its own defaults."""

    def __get__(self, pipe: DemoPipeline | None, owner: type) -> inspect.Signature:
        if pipe is None:  # the class has what every class has
            raise AttributeError("__signature__")
        defaults = {**_SIZE, "num_inference_steps": 28, **pipe.call_defaults}
        prompt, *others = [*inspect.signature(FluxPipeline.__call__).parameters.values()][1:]
        named = [one.replace(kind=one.KEYWORD_ONLY, default=defaults.get(one.name, one.default)) for one in others]
        return inspect.Signature([prompt, *named])


class DemoPipeline(FluxPipeline):  # type: ignore[misc]
    """diffusers' ``FluxPipeline``, called with the defaults that suit the demo model."""

    #: Arguments of a call that are used where the caller gives none.
    call_defaults: dict[str, Any] = {}  # noqa: RUF012 - replaced as a whole, for one pipeline, by load_pipeline
    __signature__ = _EffectiveSignature()

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        num_inference_steps: int = 28,
        **kwargs: Any,
    ) -> Any:
        """Draw a picture for each prompt.

        Args:
            prompt: what to draw, in the words of the captions that the model was trained on.
            num_inference_steps: denoising steps.
            **kwargs: further arguments of ``FluxPipeline.__call__``; those in ``call_defaults`` default
                to what stands there.

        Returns:
            What ``FluxPipeline`` returns: ``images`` holds the pictures.
        """
        arguments = {**_SIZE, **self.call_defaults, "num_inference_steps": num_inference_steps, **kwargs}
        negative = arguments.get("negative_prompt")
        if isinstance(prompt, list) and isinstance(negative, str):
            arguments["negative_prompt"] = [negative] * len(prompt)  # FluxPipeline does not do this itself
        return super().__call__(prompt, **arguments)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the models as a plain ``FluxPipeline``, so that diffusers alone can load them."""
        FluxPipeline(**self.components).save_pretrained(save_directory, **kwargs)


def load_pipeline(
    folder: str | os.PathLike[str] | None = None,
    *,
    torch_dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> DemoPipeline:
    """The demo model, loaded from the package: ``load_pipeline()("glossy 3d emoji of cuba flag").images[0]``.

    Nothing is downloaded. The weights are stored in bfloat16 and computed with in ``torch_dtype``.

    Args:
        folder: another folder with a ``FluxPipeline``; the package's own when None.
        torch_dtype: what to compute in.
        device: where to compute.
        progress: show a progress bar while a picture is drawn.

    Raises:
        MissingModelError: if there is no model in the folder.
        ConfigError: if the folder's recommended arguments are none of ``FluxPipeline``'s.
    """
    folder = MODEL_FOLDER if folder is None else Path(folder)
    if not (folder / "model_index.json").is_file():
        raise MissingModelError(
            f"there is no model in {folder} (model_index.json is missing): "
            f"install the package with its data, or pass the folder of a FluxPipeline"
        )
    with _quiet_loading():
        pipe: DemoPipeline = DemoPipeline.from_pretrained(folder, local_files_only=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            # from_pretrained's argument has another name in other versions, and the classes' own `to` warns.
            torch.nn.Module.to(part, device=device, dtype=torch_dtype)
    pipe.call_defaults = _call_defaults(folder / _RECOMMENDED)
    pipe.set_progress_bar_config(disable=not progress)
    return pipe


def _call_defaults(path: Path) -> dict[str, Any]:
    """The arguments that a model's folder recommends; none where it has no such file."""
    if not path.is_file():
        return {}
    recommended: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    known = inspect.signature(FluxPipeline.__call__).parameters
    for name in recommended:
        if name not in known:
            raise ConfigError(f"{path} recommends {name!r}, which is no argument of FluxPipeline")
    return recommended


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """No bars while the parts are read: that takes a moment only."""
    libraries = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
