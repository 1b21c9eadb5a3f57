"""Trains the demo model's transformer and text encoders on the stored latents, for a given time.

On a CPU, start one process per core with torchrun. Each works on its share of a batch with operations of one thread and
they exchange gradients once per step: on a machine that does other things too, this is several times as fast as threads
that wait for each other in every operation.
"""

import argparse
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from transformers import T5TokenizerFast

from .captions import token_ids
from .data import Pictures, load_pictures
from .model import Denoiser, Vocabulary, image_positions, pack
from .muon import StackedMuon
from .train_autoencoder import LATENTS_FILE

LOG = logging.getLogger(__name__)
CHECKPOINT_FILE = "transformer.pt"
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
FIRST_TIME_SHIFT = 1.3


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how fast to train."""

    minutes: float
    batch: int = 64
    muon_lr: float = 0.02
    adam_lr: float = 1.5e-3
    warm_up_steps: int = 100
    save_minutes: float = 5


@dataclass(slots=True)
class TrainingSet:
    """Normalised latents as tokens and the ids of their captions; the last row of the ids is the empty caption."""

    clean: torch.Tensor
    clip_ids: torch.Tensor
    t5_ids: torch.Tensor
    image_ids: torch.Tensor

    def draw(self, indices: torch.Tensor, time_shift: float) -> tuple[torch.Tensor, ...]:
        """Random training inputs for these pictures: the arguments of `Denoiser.forward`.

        Times are logit-normal (arXiv:2403.03206, section 3.1) with mean `time_shift`; the larger, the more noise.
        """
        clean = self.clean[indices]
        dropped = torch.rand(len(indices), device=indices.device) < CAPTION_DROPOUT
        captions = indices.masked_fill(dropped, len(self.clean))
        times = (torch.randn(len(indices), device=indices.device) + time_shift).sigmoid()
        noise = torch.randn_like(clean)
        return clean, noise, times, self.clip_ids[captions], self.t5_ids[captions], self.image_ids


def load_training_set(pictures: Pictures, work: Path, device: torch.device) -> tuple[TrainingSet, Vocabulary]:
    """The training set of the pictures' captions with the latents and tokenizers in `work`."""
    clip_ids, t5_ids = token_ids([*pictures.captions, ""], work)
    vocabulary = Vocabulary(
        clip_size=int(clip_ids.max()) + 1,
        clip_start=int(clip_ids[0, 0]),
        clip_end=int(clip_ids.max()),
        t5_size=len(T5TokenizerFast.from_pretrained(work / "tokenizer_2")),
    )
    # What follows the end token changes nothing in a causal encoder, so the longest caption's length will do.
    used = int((clip_ids != vocabulary.clip_end).sum(dim=1).max()) + 1
    latents = torch.load(work / LATENTS_FILE)
    image_ids = image_positions(latents.shape[-1] // 2)
    tensors = pack(latents), clip_ids[:, :used], t5_ids, image_ids
    return TrainingSet(*(tensor.contiguous().to(device) for tensor in tensors)), vocabulary


def build_optimizers(denoiser: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for all else (embeddings, modulation, norms, biases, in and out)."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in denoiser.named_parameters():
        inside = any(part in name for part in ("transformer_blocks.", "encoder.layers.", "encoder.block."))
        hidden = inside and parameter.ndim == 2 and "norm" not in name and "bias" not in name
        (matrices if hidden else others).append(parameter)
    return [
        StackedMuon(matrices, settings.muon_lr),
        torch.optim.AdamW(others, settings.adam_lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]


@dataclass(slots=True)
class Trainer:
    """The training's whole state: what a checkpoint holds."""

    denoiser: Denoiser
    settings: Settings
    folder: Path
    step: int = 0
    seconds: float = 0.0
    pictures_seen: int = 0
    last_update: float = 0.0
    optimizers: list[torch.optim.Optimizer] = field(init=False)
    average: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizers = build_optimizers(self.denoiser, self.settings)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self.average = {name: value.detach().clone() for name, value in self.denoiser.named_parameters()}

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint lies."""
        return self.folder / CHECKPOINT_FILE

    @property
    def done(self) -> float:
        """The share of the planned time that is spent, 0 to 1."""
        return min(1.0, self.seconds / (60 * self.settings.minutes))

    def save(self) -> None:
        """Writes the checkpoint; an interrupted write leaves the former one."""
        state = {
            "denoiser": self.denoiser.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": {"step": self.step, "seconds": self.seconds, "pictures_seen": self.pictures_seen},
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def resume(self) -> None:
        """Continues from the checkpoint when there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=next(self.denoiser.parameters()).device)
        self.denoiser.load_state_dict(state["denoiser"])
        self.average = {name: value.detach() for name, value in state["average"].items()}
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name, value in state["progress"].items():
            setattr(self, name, value)
        LOG.info("resumed at step %d after %.1f minutes", self.step, self.seconds / 60)

    def exchange(self, loss: torch.Tensor, seconds: float) -> tuple[torch.Tensor, float]:
        """Replaces the gradients by their means over all processes; gives the means of the two arguments, too."""
        if not dist.is_initialized():
            return loss, seconds
        parameters = list(self.denoiser.parameters())
        gradients = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([*gradients, loss[None], loss.new_tensor([seconds])])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        sizes = [parameter.numel() for parameter in parameters]
        *gradients, mean_loss, mean_seconds = flat.split([*sizes, 1, 1])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return mean_loss[0], mean_seconds.item()

    def update(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """One optimisation step; gives the loss. The learning rate warms up, then falls to zero in the planned time.

        A GPU is not waited for.
        """
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            loss = self.denoiser(*inputs)
        loss.backward()
        now = time.monotonic()
        mean_loss, seconds = self.exchange(loss.detach(), now - self.last_update)
        self.last_update = now
        self.seconds += seconds
        self.pictures_seen += self.settings.batch
        self.step += 1
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        factor = min(1.0, self.step / self.settings.warm_up_steps) * (1 - self.done)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
            optimizer.zero_grad()
        decay = min(EMA_DECAY, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.denoiser.parameters()), 1 - decay)
        return mean_loss


def prepare_blocks(denoiser: Denoiser, device: torch.device) -> None:
    """Compiles the transformer's blocks, one graph for all of a kind."""
    # PyTorch's fused attention is slow backwards on CPU; the plain one, compiled with the rest of a block, is not.
    denoiser.transformer.set_attention_backend("_native_math" if device.type == "cpu" else "native")
    torch.backends.cuda.enable_cudnn_sdp(False)  # backwards with heads of 48 it fails, or gives NaN
    denoiser.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)


def train(trainer: Trainer, training_set: TrainingSet) -> None:
    """Trains until the planned time is spent, with checkpoints on the way and one at the end."""
    settings, device, count = trainer.settings, training_set.clean.device, len(training_set.clean)
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    prepare_blocks(trainer.denoiser, device)
    shuffle = torch.Generator().manual_seed(trainer.step)
    torch.manual_seed(processes * trainer.step + rank)
    share, last_save = settings.batch // processes, time.monotonic()
    losses: list[torch.Tensor] = []
    trainer.last_update = time.monotonic()
    while trainer.done < 1:
        for indices in torch.randperm(count, generator=shuffle).split(settings.batch)[:-1]:
            # In noise the caption decides the picture, near the end the details: learn the one first, then the other.
            time_shift = FIRST_TIME_SHIFT * (1 - trainer.done)
            mine = indices[rank * share : (rank + 1) * share].to(device)
            losses.append(trainer.update(training_set.draw(mine, time_shift)))
            if trainer.step % 50 == 0 and rank == 0:
                log_progress(trainer, losses)
            if time.monotonic() - last_save > 60 * settings.save_minutes and rank == 0:
                trainer.save()
                last_save = time.monotonic()
            if trainer.done == 1:
                break
    if rank == 0:
        trainer.save()


def log_progress(trainer: Trainer, losses: list[torch.Tensor]) -> None:
    """One line on how far the training is; empties `losses`."""
    rate = trainer.pictures_seen / trainer.seconds
    mean = torch.stack(losses).mean().item()
    losses.clear()
    LOG.info("step %d, %.1f%%, loss %.4f, %.0f pictures/s", trainer.step, 100 * trainer.done, mean, rate)


def main() -> None:
    """Trains the transformer by itself; `python -m tools.train_demo` does this and all the rest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=1.5e-3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    training_set, vocabulary = load_training_set(load_pictures(options.data), options.work, options.device)
    settings = Settings(options.minutes, batch=options.batch, muon_lr=options.muon_lr, adam_lr=options.adam_lr)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    trainer = Trainer(Denoiser(vocabulary).to(options.device), settings, options.work)
    trainer.resume()
    train(trainer, training_set)


if __name__ == "__main__":
    main()
