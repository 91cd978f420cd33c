"""Kernels: how weights are stored and multiplied on each device.

`base` defines the protocols `QTensor` and `Kernels`, `select` chooses an implementation, and
`sizes` computes the size of loaded weights from a header. `stock` uses standard MLX operations on
any device, and `repack` converts GGUF blocks for it. `native` is a C++ extension for CPUs, and
`fusion` determines which models it can run as a single task.
"""
