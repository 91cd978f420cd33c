"""Make a GGUF file that holds a model's metadata and no tensors, to test its tokenizer with.

    python make_vocabulary.py MODEL.gguf OUTPUT.gguf [PRE]

Needs the gguf package. PRE, where given, takes the place of `tokenizer.ggml.pre`.
"""

import sys

from gguf import GGUFReader, GGUFValueType, GGUFWriter


def main(model: str, output: str, pre: str | None = None) -> None:
    """Copy every key of `model` to `output`."""
    fields = GGUFReader(model).fields
    writer = GGUFWriter(output, fields["general.architecture"].contents())
    for name, field in fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == GGUFValueType.ARRAY else None
        value = pre if pre and name == "tokenizer.ggml.pre" else field.contents()
        writer.add_key_value(name, value, kind, element)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
