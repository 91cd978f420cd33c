"""A loaded model that is ready to answer.

`open` turns a model name into a `Session`, which encodes messages and starts a `Generation`.
`response` prints the answer. `checkpoint` saves conversations, `prompt_cache` stores prompts and
`router_report` shows which experts the model used. `output_file` writes files that the user names.
"""
