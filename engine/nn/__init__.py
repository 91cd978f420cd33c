"""The layers that architectures share, and the caches they fill.

`config` reads and checks a file's keys, `weights` loads its tensors, and the modules of
`engine.architectures` join layers into the `Decoder`. Activations are MLX arrays of one sequence,
(T, D); weights multiply through the `Kernels` of `engine.kernels`, whatever the device.
`cache_spec` and `config` import no MLX, so `engine.fit` can use them.
"""
