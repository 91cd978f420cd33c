"""Everything that reaches the terminal: streams, progress bars, Markdown, number formats.

`console` is the only module that writes to stdout and stderr. Model output passes `sanitize` before
it is printed, so that it cannot drive the terminal. Nothing here knows about models.
"""
