"""The GGUF file format.

`reader` parses untrusted bytes into metadata and a tensor table. `metadata` reads typed values.
`types` lists the block types. `dequant` is a NumPy reference implementation that unpacks blocks. No
module here needs MLX.
"""
