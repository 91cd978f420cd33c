"""Layers of models whose residual has several streams: DeepSeek V4 and Qwen4.

`connections` joins streams and the parts of a block; `compressed` and `sparse` are their attention
to blocks of tokens, `ngrams` Qwen4's embeddings of n-grams.
"""
