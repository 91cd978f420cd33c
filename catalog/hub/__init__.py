"""The Hugging Face Hub: file listings, GGUF headers and byte ranges.

`client` is the only module that imports huggingface_hub. `header_cache` caches GGUF headers by
ETag, so that `conifer fit` also works offline. `paths` defines the folder names in the cache.
"""
