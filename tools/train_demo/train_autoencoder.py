"""Trains the demo model's autoencoder and stores the latents of all pictures."""

import argparse
import logging
import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from .data import SIZE, Pictures, load_pictures

LOG = logging.getLogger(__name__)
LATENT_CHANNELS = 8
KL_WEIGHT = 3e-4
EDGE_WEIGHT = 0.5


def build_autoencoder() -> AutoencoderKL:
    """The untrained autoencoder: 64x64x3 pictures to 16x16x8 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def autoencoder_loss(autoencoder: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of pixels and of their neighbour differences, plus a little KL per latent element."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        posterior = autoencoder.encode(pictures).latent_dist
        decoded = autoencoder.decode(posterior.sample()).sample
    error = decoded.float() - pictures
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return error.abs().mean() + EDGE_WEIGHT * edges + KL_WEIGHT * kl


def train_autoencoder(
    autoencoder: AutoencoderKL,
    pictures: Pictures,
    *,
    minutes: float,
    device: torch.device,
    batch: int = 16,
    peak_lr: float = 1e-3,
) -> None:
    """Trains for `minutes` of wall-clock time; the learning rate warms up and falls to zero by that time."""
    torch.manual_seed(0)
    autoencoder.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(autoencoder.parameters(), peak_lr, betas=(0.9, 0.99), weight_decay=0.0)
    order = torch.randperm(len(pictures.rows))
    start, step, seen, done = time.monotonic(), 0, 0, 0.0
    while done < 1:
        if seen + batch > len(order):
            order, seen = torch.randperm(len(pictures.rows)), 0
        lr = peak_lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = autoencoder_loss(autoencoder, pictures.batch(order[seen : seen + batch], device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, seen = step + 1, seen + batch
        done = min(1.0, (time.monotonic() - start) / (60 * minutes))
        if step % 50 == 0 or done == 1:
            LOG.info("step %d, %.0f%% of the time, loss %.4f", step, 100 * done, loss.item())


@torch.no_grad()
def encode_all(autoencoder: AutoencoderKL, pictures: Pictures, device: torch.device) -> tuple[torch.Tensor, float]:
    """The posterior means of all pictures, float32 (N, 8, 16, 16), and the mean PSNR in dB of decoding them."""
    means, psnrs = [], []
    for indices in torch.arange(len(pictures.rows)).split(128):
        batch = pictures.batch(indices, device)
        with torch.autocast(device.type, torch.bfloat16):
            mean = autoencoder.encode(batch).latent_dist.mean.float()
            decoded = autoencoder.decode(mean).sample.float()
        error = ((decoded.clamp(-1, 1) - batch) / 2).square().mean(dim=(1, 2, 3))
        means.append(mean.cpu())
        psnrs.append(-10 * error.log10().cpu())
    return torch.cat(means), torch.cat(psnrs).mean().item()


def finish_autoencoder(autoencoder: AutoencoderKL, pictures: Pictures, folder: Path, device: torch.device) -> float:
    """Stores autoencoder and normalised latents in `folder`; gives the mean PSNR in dB.

    The configuration gets the shift and scale with which latents have mean 0 and variance 1, as pipelines expect.
    """
    latents, psnr = encode_all(autoencoder, pictures, device)
    shift, scale = latents.mean().item(), 1 / latents.std().item()
    autoencoder.register_to_config(shift_factor=shift, scaling_factor=scale)
    autoencoder.save_pretrained(folder / "vae")
    torch.save((latents - shift) * scale, folder / "latents.pt")
    LOG.info("autoencoder: PSNR %.2f dB, shift %.4f, scale %.4f", psnr, shift, scale)
    return psnr


def main() -> None:
    """Trains the autoencoder by itself; `run.py` does this and all the rest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--resume", action="store_true", help="go on from the autoencoder in the work folder")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pictures = load_pictures(arguments.data)
    autoencoder = AutoencoderKL.from_pretrained(arguments.work / "vae") if arguments.resume else build_autoencoder()
    train_autoencoder(autoencoder, pictures, minutes=arguments.minutes, device=arguments.device)
    finish_autoencoder(autoencoder, pictures, arguments.work, arguments.device)


if __name__ == "__main__":
    main()
