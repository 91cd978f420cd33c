"""The layers that architectures share, and the caches they fill.

`config` reads and checks a file's keys, `weights` loads its tensors, and `engine.architectures`
joins layers into the `Decoder`. Activations are MLX arrays of one sequence, (T, D).
`cache` and `config` import no MLX, so `engine.fit` can use them.
"""
