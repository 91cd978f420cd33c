"""Kernels for Metal and CUDA that read GGUF blocks as they lie in the file.

`text` holds the kernels in Metal's language, which CUDA compiles too. `texts` puts them together,
`launch` runs them on a GPU. `tensor` is a weight held as its file's bytes, `experts` the kernels of
chosen experts, `blocks` the implementation of `Kernels`, and `fuse` gives it a layer's experts.
`self_test` tries a type on this GPU, and `verdicts` keeps the result. docs/gpu.md explains them.
"""
