"""`conifer serve`: an HTTP server for the models on this machine.

`command` starts it, `host` loads models and `answer` turns a request into a stream of events. One
file per protocol translates requests and events: `openai_chat`, `openai_completions`, `anthropic`
and `responses`. `app` has the routes, and `web` what all of them share.
"""
