"""Everything that reaches the terminal: streams, progress, Markdown, number formats.

`console` is the only module that writes to stdout and stderr; `progress` and `output` (answers and
thinking) write through it. `sanitize` cleans text from models, files and servers. `markdown` with
`inline` and `highlight` renders answers while they stream; `code_block` finds fences. `format`
turns values into text.
"""
