"""The arithmetic of a verdict: memory, speed, and machines, from a header alone.

`memory` computes what a model takes, `speed` how fast it decodes, `machine` what this machine has
and `machine_specs` what other machines have; `estimate` stands in where there is no header. No
weight is read.
"""
