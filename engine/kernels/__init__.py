"""Kernels: how this machine holds and multiplies weights.

`base` defines the protocols `QTensor` and `Kernels`, `select` chooses an implementation, and
`sizes` computes loaded sizes from a header. `stock` uses plain MLX operations on any MLX device and
`repack` converts GGUF blocks for it; `native` is a C++ extension for CPUs.
"""
