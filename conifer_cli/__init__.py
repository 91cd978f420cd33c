"""The `conifer` command: everything a user types and sees.

`app` declares the commands, `run_options` the options of `run`, `options` the shared ones.
`acquire` turns a name into a file to run; `errors` maps exceptions to exit codes, messages and
hints. `commands` has one file per command, `chat` the conversation, `session` a loaded model, `fit`
the verdict on memory and speed, and `terminal` all output.
"""
