"""The interactive conversation: prompt editor, slash commands, and the loop that joins them.

`repl` reads a message with `editor`, hands it to `conversation` or, if it begins with a slash, to
`slash_commands`, and prints the answer. One-shot answers and JSON output are in `commands.run`;
both use `session` for generation.
"""
