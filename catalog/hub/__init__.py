"""The Hugging Face Hub: file listings, header bytes, byte ranges.

`client` is the only importer of huggingface_hub. `header_cache` stores GGUF headers by ETag, so
that `fit` also works offline. `paths` names the folders of the cache layout.
"""
