"""Exports the trained parts as one FluxPipeline folder, and draws sheets of samples from such a folder."""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizerFast, T5TokenizerFast

from .captions import T5_LENGTH
from .data import SIZE, Pictures, load_pictures
from .model import Denoiser
from .train_transformer import CHECKPOINT_FILE, load_training_set

CONTRACT_FILE = "cache_dit_demo.json"
SIZE_LIMIT = 30_000_000


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The arguments of the pipeline's call that the model was made for: the contract of the exported folder."""

    height: int = SIZE
    width: int = SIZE
    num_inference_steps: int = 28
    max_sequence_length: int = T5_LENGTH
    negative_prompt: str = ""
    true_cfg_scale: float = 1.0


def assemble(pictures: Pictures, work: Path, *, shift: float, dtype: torch.dtype) -> FluxPipeline:
    """The pipeline made of the parts in `work`: the checkpoint's averaged weights, autoencoder and tokenizers."""
    _, vocabulary = load_training_set(pictures, work, torch.device("cpu"))
    denoiser = Denoiser(vocabulary)
    average = torch.load(work / CHECKPOINT_FILE, map_location="cpu")["average"]
    parameters = dict(denoiser.named_parameters())
    if average.keys() != parameters.keys():
        raise ValueError(f"{work / CHECKPOINT_FILE} is of another architecture: retrain, or check out its own code")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(average[name])
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False),
        vae=AutoencoderKL.from_pretrained(work / "vae").to(dtype),
        text_encoder=denoiser.text_encoder.to(dtype),
        tokenizer=CLIPTokenizerFast.from_pretrained(work / "tokenizer"),
        text_encoder_2=denoiser.text_encoder_2.to(dtype),
        tokenizer_2=T5TokenizerFast.from_pretrained(work / "tokenizer_2"),
        transformer=denoiser.transformer.to(dtype),
    )


def export(pipeline: FluxPipeline, work: Path, folder: Path, notice: Path, call: CallArguments) -> int:
    """Writes the pipeline, its contract and the data's notice to an emptied `folder`; gives the size in bytes.

    Raises ValueError when the files together are larger than 30 MB.
    """
    if folder.exists():
        shutil.rmtree(folder)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(folder / name)
        shutil.copytree(work / name, folder / name)
    _clean(folder)
    _write_json(folder / CONTRACT_FILE, asdict(call))
    shutil.copyfile(notice, folder / "NOTICE.md")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > SIZE_LIMIT:
        raise ValueError(f"{folder}: {size / 1e6:.1f} MB, more than the {SIZE_LIMIT / 1e6:.0f} MB it may have")
    return size


def _clean(folder: Path) -> None:
    """Makes the folder fit for other machines, and for transformers 4 as well as 5."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    # In version 5 these names are aliases; in version 4 the names without "Fast" need sentencepiece files.
    index["tokenizer"] = ["transformers", "CLIPTokenizerFast"]
    index["tokenizer_2"] = ["transformers", "T5TokenizerFast"]
    _write_json(folder / "model_index.json", index)
    _prefix_keys(folder / "text_encoder" / "model.safetensors", "text_model.")
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        _write_json(path, config)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _prefix_keys(path: Path, prefix: str) -> None:
    """Gives all weights the prefix that CLIPTextModel has in version 4; version 5 writes none but reads both."""
    weights = {key if key.startswith(prefix) else prefix + key: value for key, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_contract(folder: Path) -> CallArguments:
    """The call arguments that belong to an exported folder."""
    return CallArguments(**json.loads((folder / CONTRACT_FILE).read_text(encoding="utf-8")))


def load_exported(folder: Path, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> FluxPipeline:
    """The exported pipeline, loaded as any user of diffusers would."""
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: FluxPipeline, captions: Sequence[str], call: CallArguments, *, first_seed: int = 0, batch: int = 25
) -> list[Image.Image]:
    """One picture per caption; the picture at index i starts from the noise of seed `first_seed + i`."""
    pictures: list[Image.Image] = []
    for start in range(0, len(captions), batch):
        chunk = list(captions[start : start + batch])
        seeds = range(first_seed + start, first_seed + start + len(chunk))
        arguments = {**asdict(call), "negative_prompt": [call.negative_prompt] * len(chunk)}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        pictures += pipeline(chunk, generator=generators, **arguments).images
    return pictures


def sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int, scale: int = 2) -> Image.Image:
    """Pictures in rows of `columns`, each enlarged `scale` times, with its caption under it."""
    side, text_height, margin = SIZE * scale, 44, 6
    rows = -(-len(pictures) // columns)
    cell_width, cell_height = side + 2 * margin, side + text_height + margin
    canvas = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = index % columns * cell_width + margin
        top = index // columns * cell_height + margin
        canvas.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left, top))
        for line_number, line in enumerate(_wrap(draw, caption, side)[:4]):
            draw.text((left, top + side + 10 * line_number), line, fill="black", font_size=9)
    return canvas


def _wrap(draw: ImageDraw.ImageDraw, text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font_size=9) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line]


def main() -> None:
    """Exports a training's present state."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shift", type=float, default=2.0)
    parser.add_argument("--true-cfg-scale", type=float, default=2.0)
    arguments = parser.parse_args()
    pictures = load_pictures(arguments.data)
    pipeline = assemble(pictures, arguments.work, shift=arguments.shift, dtype=torch.bfloat16)
    call = CallArguments(true_cfg_scale=arguments.true_cfg_scale)
    size = export(pipeline, arguments.work, arguments.out, arguments.data / "NOTICE.md", call)
    print(f"{arguments.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
