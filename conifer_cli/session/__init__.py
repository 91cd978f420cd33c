"""A loaded model and one conversation with it: generation, saved conversations, router reports.

Messages and options go in, text goes out through `terminal.output`. `checkpoint` saves and resumes
a conversation, `prompt_cache` keeps the KV cache of a long prompt between runs, and `router_report`
shows which experts answered.
"""
