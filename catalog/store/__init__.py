"""Models on disk: find, list, remove and verify them.

`store` combines two sources, the Hub's cache and the folder of models from PyPI, in `Store`.
`manifest` records what Conifer downloaded and the SHA-256 to expect; `disk` checks free space and
hashes files.
"""
