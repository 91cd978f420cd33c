"""Work out whether a model fits on a machine and how fast it runs, reading only its header.

`memory` computes memory use and the default and largest contexts. `speed` predicts the decode rate,
`decode_cost` has what each block type costs a core, and `prefill` predicts prompts. `estimate` does
both from catalog facts, without a header. `machine` and `bandwidth` measure this machine, and
`machine_specs` describes others. Only the measurements import MLX.
"""
