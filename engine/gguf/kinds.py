"""Identify files that are not text-generation models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

START_BYTES = 512  # `what_it_is` needs this much of a file

# (offset, bytes, what the file is); the first match wins.
_MAGICS = (
    (0, b"version https://git-lfs", "a Git LFS pointer, whose file was never fetched"),
    (257, b"ustar", "a TAR archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (0, b"\xfd7zXZ", "an XZ archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"\x04\x22\x4d\x18", "an LZ4 archive"),
    (0, b"lmgg", "a GGML file, the format before GGUF"),
    (0, b"fmgg", "a GGMF file, a format before GGUF"),
    (0, b"tjgg", "a GGJT file, a format before GGUF"),
    (0, b"algg", "a GGLA file, an adapter in a format before GGUF"),
    (0, b"ggml", "a GGML file, the format before GGUF"),
    (0, b"ggjt", "a GGJT file, a format before GGUF"),
    (0, b"FUGG", "a big-endian GGUF file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x08\x03\x12", "an ONNX model"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"SQLite format 3", "an SQLite database"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a Windows program"),
    (0, b"#!", "a script"),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<!--")
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_ONNX = tuple(bytes([0x08, version, 0x12]) for version in range(1, 16))

# By `general.type`; "model" and files without the key are models.
_TYPES = {
    "adapter": "an adapter (LoRA) for a model",
    "mmproj": "a projector for images or audio",
    "imatrix": "an importance matrix, which only quantisation needs",
    "vocab": "a vocabulary without a model",
}
# By `general.architecture`.
_EMBEDDING, _RERANKER = (
    "an embedding model, which writes no text",
    "a reranker, which writes no text",
)
_ARCHITECTURES = {
    _EMBEDDING: "bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3 neo-bert modern-bert "
    "eurobert gemma-embedding t5encoder",
    "a diffusion model for images or video": "flux sd1 sd2 sd3 sdxl lumina2 wan hyvid ltxv aura "
    "pixart cosmos hidream qwen_image stable-diffusion",
    "a diffusion model, which does not write token by token": "dream llada llada-moe rnd1",
    "a draft model, which only speeds up another one": "eagle eagle3 medusa mtp",
    "a projector for images or audio": "clip",
    "an importance matrix, which only quantisation needs": "imatrix",
    "an audio decoder": "wavtokenizer-dec",
    "a speech recogniser": "whisper",
}
_BY_ARCHITECTURE = {
    name: words for words, names in _ARCHITECTURES.items() for name in names.split()
}
_RANK = 4  # `pooling_type` of a reranker; 1 to 3: an embedding


def what_it_is(start: bytes) -> str:
    """Return what a file that is not GGUF is, from its first START_BYTES bytes."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "an empty file"
    if not start.strip(b"\0"):
        return "a file of zeros, such as a download that never finished"
    for offset, magic, words in _MAGICS:
        if start.startswith(magic, offset):
            return words
    if start.startswith(_ONNX):
        return "an ONNX model"
    if start.startswith(_PICKLES):
        return "a Python pickle, such as PyTorch's weights"
    if start.startswith(b"PK"):
        return "PyTorch's weights" if b"data.pkl" in start else "a ZIP archive"
    if start[8:9] == b"{" and b'"' in start[9:]:
        return "a safetensors file"
    if text.startswith(_PAGES):
        return "a web page"
    if text.startswith(b"<?xml"):
        return "an XML document"
    if text.startswith((b"{", b"[")):
        return "JSON text"
    if b"\0" not in start and all(byte >= 32 or byte in b"\t\r\n\f" for byte in start):
        return "text"
    return f"a file that starts with the bytes {start[:4].hex(' ')}"


def not_a_model(metadata: Mapping[str, Any], tensors: Mapping[str, object]) -> str | None:
    """Return what a GGUF file is if it is not a text model, otherwise None.

    tensors: its tensor table, by name, over all parts.
    """
    architecture = metadata.get("general.architecture")
    kind = metadata.get("general.type")
    if isinstance(kind, str) and kind in _TYPES:
        return _TYPES[kind]
    if "adapter.type" in metadata:
        return _TYPES["adapter"]
    if "imatrix.datasets" in metadata or "imatrix.chunk_count" in metadata:
        return _TYPES["imatrix"]
    if isinstance(architecture, str) and architecture in _BY_ARCHITECTURE:
        return _BY_ARCHITECTURE[architecture]
    pooling = metadata.get(f"{architecture}.pooling_type")
    if isinstance(pooling, int) and not isinstance(pooling, bool) and pooling > 0:
        return _RERANKER if pooling == _RANK else _EMBEDDING
    return _incomplete(tensors)


def _incomplete(tensors: Mapping[str, object]) -> str | None:
    if not tensors:
        return "a vocabulary without weights"
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blk.")}
    if blocks and "0" not in blocks:
        return "a draft model: the last layers of another one"
    return None if "token_embd.weight" in tensors else "a part of a model, without its embedding"
