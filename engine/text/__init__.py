"""Tokenizers, chat templates, thinking and constrained decoding.

`chat_template` renders messages into a prompt, in the child process that `sandbox` starts, and
`tokenizer` encodes the prompt. In the output, `reasoning` separates thinking from the answer, and
`constrained` restricts which tokens may come next.
"""
