"""Models on disk: find, list, remove and verify them.

`store` defines `Store`, which combines the Hub's cache with the folder of models from PyPI.
`manifest` records which files Conifer downloaded and their expected SHA-256. `disk` checks free
space and hashes files.
"""
