"""The GGUF file format.

`reader` parses untrusted bytes into metadata and a tensor table, and `kinds` says what other files
are. `metadata` reads typed values. `types` lists the block types, some of which use the points in
`grids`. `dequant` is a NumPy reference implementation that unpacks blocks. No module here needs
MLX.
"""
