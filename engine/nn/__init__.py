"""The layers that architectures share, and the caches that attention and recurrent layers use.

`config` reads and checks a model's metadata, `weights` loads its tensors, and
`engine.architectures` assembles the layers into a `Decoder`. Activations are MLX arrays (T, D) for
one sequence. `config` and `cache.spec` do not import MLX, so `engine.fit` can use them.
"""
