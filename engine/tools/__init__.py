"""Calls of functions in a model's answer.

`dialects` is a table of how model families write calls, `bodies` reads one call in each of these
forms and `parser` finds calls while the text streams. `grammar` constrains an answer to valid
calls. `messages` describes tools to models whose chat template has no place for them.
"""
