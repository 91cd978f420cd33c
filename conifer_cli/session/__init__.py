"""A loaded model ready to answer.

`open` turns a model name into a `Session`, which encodes messages and starts a `Generation`;
`response` prints it. `checkpoint` saves conversations and `prompt_cache` prompts.
"""
