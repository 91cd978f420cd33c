"""The `conifer` command: everything a user types and sees.

`app` declares the commands and turns errors into exit codes; `commands` has one file per command.
`chat` is the interactive conversation, `session` a loaded model and its messages, `fit` the check
whether a model fits this machine, `terminal` all output. Weights come from `catalog`, tokens from
`engine`.
"""
