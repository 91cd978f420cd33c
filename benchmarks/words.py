"""A vocabulary made up: as large as a real one, byte-level, with merges."""

from __future__ import annotations

import random

import numpy as np
from packing import INT32, array, boolean, string, strings, uint32

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# As Qwen3 has them: after the merged tokens, and before what pads the vocabulary to its size.
SPECIALS = {
    "<|endoftext|>": CONTROL,
    "<|im_start|>": CONTROL,
    "<|im_end|>": CONTROL,
    "<|object_ref_start|>": CONTROL,
    "<|object_ref_end|>": CONTROL,
    "<|box_start|>": CONTROL,
    "<|box_end|>": CONTROL,
    "<|quad_start|>": CONTROL,
    "<|quad_end|>": CONTROL,
    "<|vision_start|>": CONTROL,
    "<|vision_end|>": CONTROL,
    "<|vision_pad|>": CONTROL,
    "<|image_pad|>": CONTROL,
    "<|video_pad|>": CONTROL,
    "<tool_call>": USER_DEFINED,
    "</tool_call>": USER_DEFINED,
    "<|fim_prefix|>": CONTROL,
    "<|fim_middle|>": CONTROL,
    "<|fim_suffix|>": CONTROL,
    "<|fim_pad|>": CONTROL,
    "<|repo_name|>": CONTROL,
    "<|file_sep|>": CONTROL,
    "<tool_response>": USER_DEFINED,
    "</tool_response>": USER_DEFINED,
    "<think>": USER_DEFINED,
    "</think>": USER_DEFINED,
}
PADDING = 267  # tokens that nothing uses, of a vocabulary of 151,936
LONGEST_PART = 4  # characters of what is merged again: keeps tokens as long as real ones
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary(size: int, seed: int) -> list[tuple[str, bytes]]:
    """Make up a byte-level vocabulary of `size` tokens, merged out of letters at random."""
    padding = PADDING if size > 1024 else 0
    words, merges = make_words(size - len(SPECIALS) - padding, seed)
    specials = [*SPECIALS, *(f"[PAD{len(words) + len(SPECIALS) + i}]" for i in range(padding))]
    kinds = [NORMAL] * len(words) + [*SPECIALS.values()] + [UNUSED] * padding
    ids = {text: len(words) + i for i, text in enumerate(SPECIALS)}
    prefix = "tokenizer.ggml."
    return [
        (prefix + "model", string("gpt2")),
        (prefix + "pre", string("qwen2")),
        (prefix + "tokens", strings(words + specials)),
        (prefix + "token_type", array(INT32, np.array(kinds, "<i4").tobytes(), len(kinds))),
        (prefix + "merges", strings(merges)),
        (prefix + "eos_token_id", uint32(ids["<|im_end|>"])),
        (prefix + "padding_token_id", uint32(ids["<|endoftext|>"])),
        (prefix + "bos_token_id", uint32(ids["<|endoftext|>"])),
        (prefix + "add_bos_token", boolean(False)),
        ("tokenizer.chat_template", string(TEMPLATE)),
    ]


def make_words(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Make `count` tokens, the 256 bytes first, and the merges that lead to the others."""
    words = byte_letters()
    draw = random.Random(seed)
    space = "Ġ"  # how a space is written; it only starts a word
    inner, starting, known = list(LETTERS), [space], set(words)
    merges: list[str] = []
    while len(words) < count:
        left = draw.choice(starting if draw.random() < 0.5 else inner)
        right = draw.choice(inner)
        word = left + right
        if word in known:
            continue
        known.add(word)
        words.append(word)
        merges.append(f"{left} {right}")
        if len(word) <= LONGEST_PART:
            (starting if word.startswith(space) else inner).append(word)
    return words, merges


def byte_letters() -> list[str]:
    """List the letters that stand for bytes in a byte-level vocabulary, in GPT-2's order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]
