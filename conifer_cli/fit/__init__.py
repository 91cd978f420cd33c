"""Predict whether a model fits a machine, with how much context, and how fast it runs.

`verdict` judges models for this machine and rejects any that are too large. `predict` judges models
for any machine and adds their speed. `alternatives` and `quant_matrix` find models and settings
that would fit instead. `run_history` records measured speeds in the ledger. `view` formats the
output. `engine.fit` computes memory use and speed; this package adds the catalog and the Hub.
"""
