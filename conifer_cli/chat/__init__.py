"""The interactive conversation of `conifer run`.

`repl` is the loop: it reads a message with `editor` and passes it to `turn`, or to
`slash_commands` if it starts with a slash. `conversation` holds the messages and the session;
`context_limit` asks what to do when they no longer fit. `attachments` and `clipboard` move text in
and out. One-shot answers are in `commands.run`; both use `session` to generate.
"""
