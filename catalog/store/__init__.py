"""What is on the disk: finding, listing, removing and verifying models in the Hub cache.

`cache` maps references to files, `disk` checks free space, `manifest` records what Conifer
downloaded, and `verify` hashes files again.
"""
