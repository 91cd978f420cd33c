"""The interactive conversation of `conifer run`.

`repl` reads messages with `editor` and passes them to `turn` or `slash_commands`. `conversation`
holds the messages and the session. One-shot answers are in `commands.run`.
"""
