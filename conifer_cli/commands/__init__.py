"""One module per subcommand. Each prints the command's output and returns its exit code.

`conifer_cli.app` parses the command line and calls one function in this package. Commands locate
models with `acquire`, judge them with `fit`, and write through `terminal.console`. The modules
`list` and `rm` have the same names as their subcommands.
"""
