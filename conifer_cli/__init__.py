"""The `conifer` command-line interface.

`app` and `kept_commands` declare the commands; `options` and `run_options` declare their options.
`acquire` finds or downloads the file for a model name. `errors` maps exceptions to exit codes,
messages and hints. The
packages are `commands` (one file per command), `chat` (conversations), `session` (a loaded model),
`fit` (memory and speed verdicts) and `terminal` (all output).
"""
