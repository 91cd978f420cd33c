"""One file for each subcommand: what it prints and which exit code it returns.

`conifer_cli.app` parses the command line and calls one function here. A command locates models with
`acquire`, judges them with `fit`, and writes through `terminal.console`. `list` and `rm` are named
after what the user types.
"""
