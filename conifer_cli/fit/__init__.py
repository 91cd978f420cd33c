"""Predict whether a model fits a machine, with how much context, and how fast it runs.

`verdict` judges a model for this machine. `choice` picks the file if its name leaves that open;
`other_quants` scales memory use to another quantisation. `predict` judges for any machine, and
predicts speed. `alternatives` and `quant_matrix` find what would fit instead. `run_history` keeps
measured speeds, `view` formats the output, `context` says what limits a context, `hub_header` reads
headers on the Hub, `naming` puts the file into messages. `engine.fit` does the arithmetic.
"""
