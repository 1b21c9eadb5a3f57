"""Makes the demo model from nothing by one command: data, tokenizers, autoencoder, transformer, export, figures."""

import argparse
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import torch

from .build_data import build_data
from .captions import save_clip_tokenizer, save_t5_tokenizer
from .data import Pictures, load_pictures
from .evaluate import evaluate
from .export import CallArguments, assemble, export
from .train_autoencoder import LATENTS_FILE, refine_decoder, store, train_autoencoder

LOG = logging.getLogger(__name__)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_demo", description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder with images.npz, captions.jsonl, NOTICE.md (default: build it)"
    )
    parser.add_argument("--work", type=Path, default=Path(".cache/train_demo"), help="checkpoints; a rerun resumes")
    parser.add_argument("--out", type=Path, default=Path("src/cache_dit/demo/model"), help="emptied, then written")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--minutes", type=float, default=100, help="of transformer training")
    parser.add_argument("--autoencoder-minutes", type=float, default=15)
    parser.add_argument("--autoencoder-batch", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64, help="of the transformer")
    parser.add_argument("--processes", type=int, help="that train the transformer (default: CPU cores, or 1 on a GPU)")
    parser.add_argument("--shift", type=float, default=2.0, help="of the scheduler's sigmas")
    parser.add_argument("--true-cfg-scale", type=float, default=2.0, help="recommended guidance, 1 for none")
    return parser.parse_args()


def prepare(pictures: Pictures, work: Path, *, minutes: float, batch: int, device: torch.device) -> None:
    """Tokenizers, autoencoder and latents in `work`, unless they are there already."""
    save_clip_tokenizer(pictures.captions, work / "tokenizer")
    save_t5_tokenizer(pictures.captions, work / "tokenizer_2")
    if (work / LATENTS_FILE).exists():
        LOG.info("keeping the autoencoder and the latents in %s", work)
        return
    autoencoder = train_autoencoder(pictures, minutes=0.6 * minutes, batch=batch, device=device)
    store(autoencoder, pictures, work, device)
    psnr = refine_decoder(pictures, work, minutes=0.4 * minutes, batch=batch, device=device)
    LOG.info("autoencoder: PSNR %.2f dB", psnr)


def train_in_processes(data: Path, work: Path, options: argparse.Namespace) -> None:
    """Trains the transformer: on a CPU with one process per core, on a GPU with one."""
    processes = options.processes or (os.cpu_count() or 1 if options.device.type == "cpu" else 1)
    if options.batch % processes:
        raise SystemExit(f"--batch {options.batch} is no multiple of the {processes} processes; change either")
    module = ["-m", "tools.train_demo.train_transformer", "--data", data, "--work", work]
    sizes = ["--minutes", options.minutes, "--batch", options.batch, "--device", options.device]
    several = ["-m", "torch.distributed.run", "--nproc-per-node", processes] if processes > 1 else []
    command = [str(word) for word in (sys.executable, *several, *module, *sizes)]
    threads = {"OMP_NUM_THREADS": "1"} if several else {}
    subprocess.run(command, env={**os.environ, **threads}, check=True)


def main() -> None:
    """Runs every stage; stages that are done are kept."""
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    options.device = torch.device(automatic if options.device == "auto" else options.device)
    data, work = options.data or options.work / "data", options.work
    work.mkdir(parents=True, exist_ok=True)
    if options.data is None and not (data / "images.npz").exists():
        build_data(data)
    pictures = load_pictures(data)
    device, minutes, batch = options.device, options.autoencoder_minutes, options.autoencoder_batch
    prepare(pictures, work, minutes=minutes, batch=batch, device=device)

    train_in_processes(data, work, options)
    pipeline = assemble(pictures, work, shift=options.shift, dtype=torch.bfloat16)
    size = export(pipeline, work, options.out, data / "NOTICE.md", CallArguments(true_cfg_scale=options.true_cfg_scale))
    LOG.info("%s: %.1f MB", options.out, size / 1e6)
    report = evaluate(options.out, pictures, device=options.device)
    (work / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
