"""Tokenizers, chat templates, thinking and constrained decoding.

`chat_template` renders messages into a prompt, in the child process that `sandbox` starts, and in a
form that `message_forms` finds complete. `tokenizer` encodes the prompt; `marks` finds special
tokens in it. In the output, `reasoning` separates thinking from the answer, and `constrained`
restricts which tokens may come next. `json_schema` reads a schema, `json_grammar` prepares it, and
`json_document` checks the answer against it.
"""
