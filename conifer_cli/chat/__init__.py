"""The interactive conversation of `conifer run`.

`repl` reads messages with `line_editor` and passes them to `turn`, or to `slash_commands` if they
start with a slash. `conversation` holds the messages and the session; `context_limit` asks what to
do when they no longer fit. `attachments` reads files into messages, `clipboard` copies answers.
"""
