"""The demo model's data set: captioned 64x64 pictures in three styles, read from a folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

SIZE = 64


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one picture besides its pixels: a line of `captions.jsonl`."""

    src: str
    id: str
    caption: str
    name: str
    category: str
    subcategory: str
    tone: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures and their rows, in one order.

    `images` is uint8 of shape (N, 64, 64, 3) on white.
    """

    images: np.ndarray
    rows: Sequence[Row]

    @property
    def captions(self) -> list[str]:
        """The caption of every picture."""
        return [row.caption for row in self.rows]

    def batch(self, indices: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The pictures at `indices` as float32 (B, 3, 64, 64) in [-1, 1], channels last in memory."""
        pixels = torch.from_numpy(self.images[indices.cpu().numpy()]).to(device)
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def load_pictures(folder: Path) -> Pictures:
    """Reads `images.npz` and `captions.jsonl` of `folder`; raises ValueError when they don't fit each other."""
    images = np.load(folder / "images.npz")["images"]
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [Row(**json.loads(line)) for line in lines]
    if images.shape != (len(rows), SIZE, SIZE, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"{folder}: expected uint8 images of shape {(len(rows), SIZE, SIZE, 3)} for {len(rows)} captions, "
            f"got {images.dtype} {images.shape}"
        )
    return Pictures(images, rows)
