"""Text to token ids and back: tokenizers, chat templates, thinking, constrained decoding.

Messages become a prompt in `chat_template` (rendered in a child process by `sandbox`), and ids in
`tokenizer`. On the way back, `reasoning` separates thinking from the answer, and `constrained`
restricts which tokens may come next.
"""
