"""The KV cache and recurrent states of one sequence.

`spec` describes what each layer stores and computes its bytes, without MLX; `cache` holds the
arrays while a model runs; `state` converts a cache to plain arrays and back, for files.
"""
