"""Does a model fit, with how much context, and how fast: the part that needs the catalog.

`plan` is the verdict that `run`, `pull` and `fit` share; `predict` judges for any machine and adds
the speed; `alternatives` and `quant_matrix` suggest what would fit instead; `history` records real
runs. The arithmetic on a header and a machine is in `engine.fit`.
"""
