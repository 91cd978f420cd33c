"""The KV cache and recurrent states of one sequence.

`spec` describes what each layer stores and computes its size in bytes, without importing MLX.
`cache` holds the arrays while a model runs. `state` converts a cache to plain arrays and back, so
that it can be saved to a file.
"""
