"""Weights of random networks in the files that the metrics read, and an empty place to look for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cache_dit.metrics.networks import files, lpips


def isolate(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No environment variable names weights, and every cache is below `folder`."""
    for network in files.NETWORKS:
        monkeypatch.delenv(network.variable, raising=False)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))


def by_name(shape: torch.Size, name: str) -> Tensor:
    """Normal numbers that depend on the tensor's name alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(name.encode())))


def random_trunk(path: Path, network: str = "alex") -> Path:
    """A file like the one that `fetch` writes, with other numbers, scaled so that nothing dies out."""
    features = lpips.features(network)
    state = {}
    for name, tensor in features.state_dict().items():
        scale = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.1
        state[f"features.{name}"] = by_name(tensor.shape, name) * scale
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


def random_inception(path: Path) -> Path:
    """A file like the published one, with other numbers."""
    from cache_dit.metrics.networks.inception import InceptionV3

    with torch.device("meta"):
        shapes = InceptionV3().state_dict()
    state = {}
    for name, like in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("conv.weight"):
            state[name] = by_name(like.shape, name) * (2 / like[0].numel()) ** 0.5
        elif "running_var" in name or name.endswith("bn.weight"):
            state[name] = 1 + 0.1 * torch.rand(like.shape, generator=torch.Generator().manual_seed(sum(name.encode())))
        else:
            state[name] = 0.1 * by_name(like.shape, name)
    torch.save(state, path)
    return path


def random_reward(path: Path) -> Path:
    """A file like ``ImageReward.pt`` in small: its names, two layers of each encoder, 32 x 32 pixels, 60 tokens."""
    block = ("norm1.weight", 128), ("norm1.bias", 128), ("attn.qkv.weight", 384, 128), ("attn.qkv.bias", 384)
    block += ("attn.proj.weight", 128, 128), ("attn.proj.bias", 128), ("norm2.weight", 128), ("norm2.bias", 128)
    block += ("mlp.fc1.weight", 512, 128), ("mlp.fc1.bias", 512), ("mlp.fc2.weight", 128, 512), ("mlp.fc2.bias", 128)
    layer: tuple[tuple[str | int, ...], ...] = ()
    for name, width in (("attention", 64), ("crossattention", 128)):
        for part, wide in (("self.query", 64), ("self.key", width), ("self.value", width), ("output.dense", 64)):
            layer += (f"{name}.{part}.weight", 64, wide), (f"{name}.{part}.bias", 64)
        layer += (f"{name}.output.LayerNorm.weight", 64), (f"{name}.output.LayerNorm.bias", 64)
    layer += ("intermediate.dense.weight", 96, 64), ("intermediate.dense.bias", 96)
    layer += ("output.dense.weight", 64, 96), ("output.dense.bias", 64)
    layer += ("output.LayerNorm.weight", 64), ("output.LayerNorm.bias", 64)
    vision, text = "blip.visual_encoder.", "blip.text_encoder."
    rows: list[tuple[str | int, ...]] = [(f"{vision}cls_token", 1, 1, 128), (f"{vision}pos_embed", 1, 5, 128)]
    rows += [(f"{vision}patch_embed.proj.weight", 128, 3, 16, 16), (f"{vision}patch_embed.proj.bias", 128)]
    rows += [(f"{vision}blocks.{i}.{name}", *shape) for i in range(2) for name, *shape in block]
    rows += [(f"{vision}norm.weight", 128), (f"{vision}norm.bias", 128)]
    rows += [
        (f"{text}embeddings.word_embeddings.weight", 60, 64),
        (f"{text}embeddings.position_embeddings.weight", 40, 64),
    ]
    rows += [(f"{text}embeddings.LayerNorm.weight", 64), (f"{text}embeddings.LayerNorm.bias", 64)]
    rows += [(f"{text}encoder.layer.{i}.{name}", *shape) for i in range(2) for name, *shape in layer]
    widths = (64, 1024, 128, 64, 16, 1)
    for place, out, wide in zip((0, 2, 4, 6, 7), widths[1:], widths, strict=False):
        rows += [(f"mlp.layers.{place}.weight", out, wide), (f"mlp.layers.{place}.bias", out)]
    rows += [("blip.vision_proj.weight", 3, 3), ("blip.vision_proj.bias", 3)]  # in the published file, and unused
    state = {f"{text}embeddings.position_ids": torch.arange(40)[None]}
    for name, *shape in rows:
        norm = "norm" in name.lower() and name.endswith("weight")
        state[name] = by_name(torch.Size(shape), name) * (0.15 if len(shape) > 1 else 0.1) + norm
    torch.save(state, path)
    return path


def random_clip(folder: Path) -> Path:
    """A CLIP model of one layer each, whose words are single letters, in transformers' form."""
    from transformers import CLIPConfig, CLIPModel

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    text = {**size, **ends, "vocab_size": len(words), "max_position_embeddings": 16}
    vision = {**size, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    nn.init.normal_(model.vision_model.embeddings.patch_embedding.weight, std=0.5)
    model.save_pretrained(folder)
    mean = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27], "do_normalize": True, "do_rescale": True}
    square = {"do_resize": True, "size": {"shortest_edge": 32}, "do_center_crop": True, "resample": 3}
    crop = {"crop_size": {"height": 32, "width": 32}, "image_processor_type": "CLIPImageProcessor"}
    for name, content in {
        "vocab.json": {word: number for number, word in enumerate(words)},
        "preprocessor_config.json": {**mean, **square, **crop},
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16},
    }.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder
