"""The GGUF format: a bounded header reader, block types, and a NumPy reference for each.

Bytes go in; metadata, a tensor table and, in tests, float arrays come out. `reader` treats the file
as hostile input. Nothing here needs MLX.
"""
