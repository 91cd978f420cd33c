"""Make tests/data/tokens/*.npz: llama.cpp's ids for the mixed strings of tests/support/strings.py.

    python make_tokenizer_expectations.py VOCABULARY.gguf OUTPUT.npz [COUNT]

Needs llama-cpp-python and NumPy. The vocabulary is read with `vocab_only`; the strings are cut into
ids without special tokens added or parsed. OUTPUT holds `ids`, all lists one after the other, and
their `lengths`.
"""

import ctypes
import sys
from pathlib import Path

import llama_cpp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.strings import mixed_strings


def load(vocabulary: str) -> llama_cpp.llama_vocab_p:
    """Read the vocabulary of a file, and nothing else."""
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(vocabulary.encode(), parameters)
    return llama_cpp.llama_model_get_vocab(model)


def tokenize(vocab: llama_cpp.llama_vocab_p, text: str) -> list[int]:
    """Ask llama.cpp for the ids of one text."""
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), False, False)
    if count < 0:
        raise RuntimeError(f"{-count} tokens for {len(data)} bytes")
    return list(ids[:count])


def main(vocabulary: str, output: str, count: str = "2000") -> None:
    """Tokenise the strings and store the ids."""
    vocab = load(vocabulary)
    rows = [tokenize(vocab, text) for text in mixed_strings(int(count))]
    np.savez_compressed(
        output,
        ids=np.array([id for row in rows for id in row], dtype=np.int32),
        lengths=np.array([len(row) for row in rows], dtype=np.int32),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
