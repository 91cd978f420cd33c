"""A loaded model ready to answer.

`open` turns a model name into a `Session`, which encodes messages and starts a `Generation`;
`response` prints it. `checkpoint` has the files of saved conversations, `prompt_cache` the folder
of prompts for `--cache`, and `router_report` the experts chosen for the last answer.
"""
