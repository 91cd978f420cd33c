"""Models on disk: find, list, remove and verify them.

`source` defines what the two sources, the Hub and the package index, have in common, and checks
disk space. `cache` implements both and combines them in `Store`. `manifest` records what Conifer
downloaded, and the SHA-256 to expect.
"""
