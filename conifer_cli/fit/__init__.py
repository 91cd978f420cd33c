"""Whether a model fits, with how much context, and how fast: the part that needs the catalog.

`verdict` decides for this machine and refuses what is too large; `run`, `pull` and `fit` share it.
`predict` judges any machine and adds the speed; `alternatives` and `quant_matrix` find what would
fit instead; `run_history` records measured speeds (the ledger); `view` prints it all. The
arithmetic on a header and a machine is in `engine.fit`.
"""
