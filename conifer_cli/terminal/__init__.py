"""Everything written to the terminal: streams, progress, Markdown and number formats.

`console` is the only module that writes to stdout and stderr. `sanitize` cleans text from models,
files and servers.
"""
