"""Tokenizers made from the captions, and captions as the token ids that the pipeline would make of them.

Both tokenizers keep to what transformers' classes rebuild from `tokenizer.json`, so that versions 4 and 5 agree.
"""

import json
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizerFast, T5TokenizerFast

T5_LENGTH = 20
CLIP_LENGTH = 32
CLIP_MERGES = 2200
_CLIP_SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def lowercase_charsmap() -> bytes:
    """The sentencepiece character map that turns A-Z into a-z.

    T5's tokenizer knows no other normalizer. The map is a double-array trie of 32-bit units (root with offset 256,
    a unit per letter at 256 + its code, a leaf with the replacement's index at 512 + its code), then the replacements.
    """
    units = [0] * 640
    units[0] = 256 << 10
    replacements = b""
    for code in range(ord("A"), ord("Z") + 1):
        units[256 + code] = ((256 ^ 512) << 10) | (1 << 8) | code
        units[512 + code] = len(replacements)
        replacements += chr(code).lower().encode() + b"\0"
    return struct.pack("<I640I", 4 * len(units), *units) + replacements


def t5_vocabulary(captions: Iterable[str]) -> list[tuple[str, float]]:
    """Unigram pieces with their log-probabilities: every word of the captions, and all their characters.

    Words are cheap and characters dear, so that a known word is always one piece and an unknown one is spelled.
    """
    words: Counter[str] = Counter()
    characters = set("abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()&*+-/")
    for caption in captions:
        characters.update(caption.replace(" ", ""))
        words.update(word.strip(",:()") for word in caption.split())
    del words[""]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [("▁" + word, -2.0) for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0]))]
    return pieces + [(character, -10.0) for character in sorted(characters)]


def save_t5_tokenizer(captions: Iterable[str], folder: Path) -> None:
    """Writes the tokenizer of the T5 encoder to `folder`."""
    tokenizer = Tokenizer(models.Unigram(t5_vocabulary(captions), unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Precompiled(lowercase_charsmap())
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    config = {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": T5_LENGTH,
        "extra_ids": 0,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    _save_tokenizer(tokenizer, config, folder)


def clip_vocabulary(captions: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level pieces (each inside and at the end of a word) and the merges that make words of the captions."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = _clip_pre_tokenizer()
    trainer = trainers.BpeTrainer(vocab_size=256 + CLIP_MERGES, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *(left + right for left, right in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    return {piece: index for index, piece in enumerate(pieces)}, merges


def _clip_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(_CLIP_SPLIT), behavior="removed", invert=True)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def save_clip_tokenizer(captions: Iterable[str], folder: Path) -> None:
    """Writes the tokenizer of the CLIP text encoder to `folder`."""
    vocabulary, merges = clip_vocabulary(captions)
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=end
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = _clip_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]), (start, vocabulary[start]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens([start, end])
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": CLIP_LENGTH,
        "bos_token": start,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
        "clean_up_tokenization_spaces": False,
    }
    _save_tokenizer(tokenizer, config, folder)


def _save_tokenizer(tokenizer: Tokenizer, config: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def token_ids(captions: Sequence[str], folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """CLIP ids (N, 32) and T5 ids (N, 20) of the captions, padded as FluxPipeline pads them.

    `folder` holds `tokenizer` and `tokenizer_2`. Raises ValueError when a caption doesn't fit the lengths.
    """
    tokenizers = (CLIPTokenizerFast, "tokenizer", CLIP_LENGTH), (T5TokenizerFast, "tokenizer_2", T5_LENGTH)
    result = []
    for tokenizer_class, name, length in tokenizers:
        tokenizer = tokenizer_class.from_pretrained(folder / name)
        ids = tokenizer(list(captions), padding="longest", return_tensors="pt").input_ids
        if ids.shape[1] > length:
            raise ValueError(f"{name}: a caption has {ids.shape[1]} tokens, more than {length}; raise the length")
        ids = tokenizer(list(captions), padding="max_length", max_length=length, return_tensors="pt").input_ids
        result.append(ids)
    return result[0], result[1]
