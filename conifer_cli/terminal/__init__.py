"""Everything written to the terminal: streams, progress, Markdown and number formats.

`console` is the only module that writes to stdout and stderr. `sanitize` cleans text from models,
files and servers. `keyboard` owns the terminal's settings during a conversation. `output` streams
an answer, which `markdown` lays out and `highlight` colours.
"""
