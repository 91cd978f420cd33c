"""Predict whether a model fits a machine, with how much context, and how fast it runs.

`verdict` decides whether a model fits this machine and rejects one that is too large. `predict`
decides whether a model fits a given machine and predicts its speed. `alternatives` and
`quant_matrix` find models and settings that would fit instead. `run_history` records measured
speeds in the ledger. `view` formats the output. `context` says what limits a context, `hub_header`
reads headers on the Hub, and `naming` puts the file into messages. `engine.fit` computes memory use
and speed; this package adds the catalog and the Hub.
"""
