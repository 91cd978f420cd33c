"""How the shared layers of `engine.nn` combine into each supported model.

`registry` is the index: one row per GGUF architecture string, with its defaults and the module that
builds it. A module holds related models; its functions take the configuration and the weights of a
file and return a `Decoder`.
"""
