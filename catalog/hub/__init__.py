"""The Hugging Face Hub: file listings, GGUF headers and byte ranges.

`client` reads from the Hub. `session` sends its requests and is the only module that imports
huggingface_hub; `answers` validates responses, and `retry` sets the delays between attempts.
`header_cache` caches GGUF headers by ETag, so that `conifer fit` also works offline. `paths`
defines the folder names in the cache.
"""
