"""Everything that reaches the terminal: streams, progress, Markdown, number formats.

`console` is the only module that writes to stdout and stderr. `sanitize` cleans text from models,
files and servers.
"""
