"""The Hugging Face Hub: file listings, GGUF headers and byte ranges.

`client` reads from the Hub. `session` sends its requests and is the only module that imports
huggingface_hub; `answers` checks what comes back, and `retry` says when to ask again.
`header_cache` caches GGUF headers by ETag, so that `conifer fit` also works offline. `paths`
defines the folder names in the cache.
"""
