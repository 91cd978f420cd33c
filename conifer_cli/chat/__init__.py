"""The interactive conversation that `conifer run` starts.

`repl` reads each message with `line_editor`, whose keys come from `typed_keys`, and passes it to
`turn`, or to `slash_commands` if it starts with a slash. A `command` may change the `settings`.
`conversation` holds the messages and the session. `context_limit` asks the user what to do when the
conversation no longer fits. `attachments` reads text files to send, and `clipboard` copies answers.
"""
