"""`python -m conifer_cli`: the same program as the `conifer` command."""

from conifer_cli.app import main

main()
