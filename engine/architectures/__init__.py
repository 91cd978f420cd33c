"""Build each supported model from the shared layers in `engine.nn`.

`registry` is the index: one row per GGUF architecture string, with its defaults and the function
that builds it. Each module contains related models. Its functions receive a file's configuration
and weights and return a `Decoder`.
"""
