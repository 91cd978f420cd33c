"""Kernels for Metal and CUDA that read GGUF blocks as they lie in the file.

`text` holds the kernels in Metal's language, which CUDA compiles too. `texts` puts them together,
`launch` runs them on a GPU. `tensor` is a weight held as its file's bytes, `blocks` the kernels'
implementation, and `fuse` gives it a layer's experts. docs/gpu.md explains them.
"""
