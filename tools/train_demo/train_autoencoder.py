"""Trains the demo model's autoencoder and stores the latents of all pictures."""

import argparse
import logging
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from .data import SIZE, Pictures, load_pictures

LOG = logging.getLogger(__name__)
LATENT_CHANNELS = 8
KL_WEIGHT = 3e-4
EDGE_WEIGHT = 0.5
REFINE_NOISE = 0.05
LATENTS_FILE = "latents.pt"


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


def picture_loss(decoded: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the pixels, plus that of the differences of neighbours, which keeps edges sharp."""
    error = decoded.float() - pictures
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + EDGE_WEIGHT * edges


def optimise(
    parameters: Iterable[nn.Parameter],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    count: int,
    *,
    minutes: float,
    batch: int,
    peak_lr: float = 1e-3,
) -> None:
    """Minimises `loss_of(indices)` over random batches of `count` pictures for `minutes` of wall-clock time.

    The learning rate warms up and falls to zero by that time.
    """
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, peak_lr, betas=(0.9, 0.99), weight_decay=0.0)
    order = torch.randperm(count)
    start, step, seen, done = time.monotonic(), 0, 0, 0.0
    while done < 1:
        if seen + batch > count:
            order, seen = torch.randperm(count), 0
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
        loss = loss_of(order[seen : seen + batch])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, seen = step + 1, seen + batch
        done = min(1.0, (time.monotonic() - start) / (60 * minutes))
        if step % 50 == 0 or done == 1:
            LOG.info("step %d, %.0f%% of the time, loss %.4f", step, 100 * done, loss.item())


def train_autoencoder(pictures: Pictures, *, minutes: float, batch: int, device: torch.device) -> AutoencoderKL:
    """Trains encoder and decoder together, with a little KL per latent element."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder().to(device, memory_format=torch.channels_last).train()

    def loss_of(indices: torch.Tensor) -> torch.Tensor:
        true = pictures.batch(indices, device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = autoencoder.encode(true).latent_dist
            decoded = autoencoder.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss: torch.Tensor = picture_loss(decoded, true) + KL_WEIGHT * kl
        return loss

    optimise(autoencoder.parameters(), loss_of, len(pictures.rows), minutes=minutes, batch=batch)
    return autoencoder


def refine_decoder(pictures: Pictures, folder: Path, *, minutes: float, batch: int, device: torch.device) -> float:
    """Trains the decoder further on the stored latents, which stay as they are; gives the mean PSNR in dB.

    Latents get a little noise, as generated ones are never exact. The transformer needs no new training.
    """
    torch.manual_seed(1)
    autoencoder = AutoencoderKL.from_pretrained(folder / "vae").to(device, memory_format=torch.channels_last).train()
    latents = restore_latents(autoencoder, folder).to(device)
    noise_scale = REFINE_NOISE / autoencoder.config.scaling_factor

    def loss_of(indices: torch.Tensor) -> torch.Tensor:
        clean = latents[indices.to(device)]
        with torch.autocast(device.type, torch.bfloat16):
            decoded = autoencoder.decode(clean + noise_scale * torch.randn_like(clean)).sample
        return picture_loss(decoded, pictures.batch(indices, device))

    optimise(autoencoder.decoder.parameters(), loss_of, len(pictures.rows), minutes=minutes, batch=batch)
    autoencoder.save_pretrained(folder / "vae")
    return mean_psnr(autoencoder, latents, pictures, device)


def restore_latents(autoencoder: AutoencoderKL, folder: Path) -> torch.Tensor:
    """The stored latents in the autoencoder's own scale."""
    normalised: torch.Tensor = torch.load(folder / LATENTS_FILE)
    scale: float = autoencoder.config.scaling_factor
    shift: float = autoencoder.config.shift_factor
    return normalised / scale + shift


@torch.no_grad()
def encode_all(autoencoder: AutoencoderKL, pictures: Pictures, device: torch.device) -> torch.Tensor:
    """The posterior means of all pictures, float32 (N, 8, 16, 16)."""
    means = []
    for indices in torch.arange(len(pictures.rows)).split(128):
        with torch.autocast(device.type, torch.bfloat16):
            mean = autoencoder.encode(pictures.batch(indices, device)).latent_dist.mean
        means.append(mean.float().cpu())
    return torch.cat(means)


@torch.no_grad()
def mean_psnr(autoencoder: AutoencoderKL, latents: torch.Tensor, pictures: Pictures, device: torch.device) -> float:
    """The mean over all pictures of the PSNR in dB of decoded latents against the pictures."""
    psnrs = []
    for indices in torch.arange(len(pictures.rows)).split(128):
        with torch.autocast(device.type, torch.bfloat16):
            decoded = autoencoder.decode(latents[indices.to(latents.device)].to(device)).sample
        error = (decoded.float().clamp(-1, 1) - pictures.batch(indices, device)) / 2
        psnrs.append(-10 * error.square().mean(dim=(1, 2, 3)).log10().cpu())
    return torch.cat(psnrs).mean().item()


def store(autoencoder: AutoencoderKL, pictures: Pictures, folder: Path, device: torch.device) -> None:
    """Stores autoencoder and normalised latents in `folder`.

    The configuration gets the shift and scale with which latents have mean 0 and variance 1, as pipelines expect.
    """
    latents = encode_all(autoencoder, pictures, device)
    shift, scale = latents.mean().item(), 1 / latents.std().item()
    autoencoder.register_to_config(shift_factor=shift, scaling_factor=scale)
    autoencoder.save_pretrained(folder / "vae")
    torch.save((latents - shift) * scale, folder / LATENTS_FILE)
    LOG.info("latents: shift %.4f, scale %.4f", shift, scale)


def main() -> None:
    """Trains the autoencoder by itself; `python -m tools.train_demo` does this and all the rest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--refine", action="store_true", help="train the decoder further on the stored latents")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pictures, device = load_pictures(arguments.data), arguments.device
    if not arguments.refine:
        trained = train_autoencoder(pictures, minutes=arguments.minutes, batch=arguments.batch, device=device)
        store(trained, pictures, arguments.work, device)
        return
    minutes, batch = arguments.minutes, arguments.batch
    psnr = refine_decoder(pictures, arguments.work, minutes=minutes, batch=batch, device=device)
    LOG.info("PSNR %.2f dB", psnr)


if __name__ == "__main__":
    main()
