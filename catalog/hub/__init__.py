"""Reading the Hugging Face Hub: file listings, header bytes, byte ranges.

`client` is the only importer of huggingface_hub. `header_cache` stores the GGUF headers that were
read, by ETag, so that `fit` also works offline.
"""
