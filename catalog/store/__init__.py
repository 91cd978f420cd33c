"""Models on disk: find, list, remove and verify them.

`store` defines `Store`, which combines the Hub's cache with the folder of models from PyPI.
`manifest` records which files Conifer downloaded and their expected SHA-256. `renames` records the
Hub's new names for repositories. `disk` checks free space and hashes files.
"""
