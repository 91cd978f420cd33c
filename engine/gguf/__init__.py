"""The GGUF format: a bounded header reader, block types, and a NumPy reference dequantiser.

`reader` turns untrusted bytes into metadata and a tensor table; `metadata`
reads typed values from it; `types` lists the block types, which `dequant` unpacks. None needs MLX.
"""
