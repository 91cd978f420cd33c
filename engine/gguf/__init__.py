"""The GGUF file format.

`reader` parses untrusted bytes into metadata and a tensor table. `metadata` reads typed values from
the metadata. `types` lists the block types, and `dequant` unpacks them with NumPy as a reference
implementation. No module here needs MLX.
"""
