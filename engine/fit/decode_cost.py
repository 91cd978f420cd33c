"""How long cores take to decode a byte of each block type once they have it.

Most types decode faster than memory delivers them. Those with a codebook do not on fast memory or
few cores. The times are measured by `benchmarks/decode_cost.py`, for one core and weights in its
cache; docs/fit.md says on which machine.
"""

from __future__ import annotations

from engine.device import cores

# Nanoseconds for a kilobyte of blocks and one token, by instruction set and type.
NS_PER_KB: dict[str, dict[str, float]] = {
    "avx512": {
        "Q4_0": 40.7,
        "Q4_1": 41.6,
        "Q5_0": 46.1,
        "Q5_1": 49.8,
        "Q8_0": 26.2,
        "Q2_K": 67.9,
        "Q3_K": 62.3,
        "Q4_K": 33.1,
        "Q5_K": 35.7,
        "Q6_K": 31.3,
        "IQ4_NL": 44.2,
        "IQ4_XS": 40.9,
        "MXFP4": 49.6,
        "IQ1_S": 254.5,
        "IQ1_M": 223.2,
        "IQ2_XXS": 198.8,
        "IQ2_XS": 169.8,
        "IQ2_S": 145.1,
        "IQ3_XXS": 137.6,
        "IQ3_S": 122.9,
        "TQ1_0": 127.9,
        "TQ2_0": 66.5,
        "NVFP4": 50.8,
        "Q1_0": 133.2,
        "Q2_0": 89.0,
    },
    "avx2": {
        "Q4_0": 173.0,
        "Q4_1": 173.0,
        "Q5_0": 242.7,
        "Q5_1": 237.5,
        "Q8_0": 83.2,
        "Q2_K": 290.7,
        "Q3_K": 269.5,
        "Q4_K": 168.9,
        "Q5_K": 186.2,
        "Q6_K": 136.6,
        "IQ4_NL": 172.7,
        "IQ4_XS": 127.9,
        "MXFP4": 191.2,
        "IQ1_S": 2040.8,
        "IQ1_M": 3448.3,
        "IQ2_XXS": 714.3,
        "IQ2_XS": 819.7,
        "IQ2_S": 671.1,
        "IQ3_XXS": 549.5,
        "IQ3_S": 666.7,
        "TQ1_0": 1041.7,
        "TQ2_0": 247.5,
        "NVFP4": 952.4,
        "Q1_0": 990.1,
        "Q2_0": 3125.0,
    },
    "portable": {
        "Q4_0": 355.9,
        "Q4_1": 363.6,
        "Q5_0": 378.8,
        "Q5_1": 374.5,
        "Q8_0": 184.8,
        "Q2_K": 1010.1,
        "Q3_K": 877.2,
        "Q4_K": 377.4,
        "Q5_K": 365.0,
        "Q6_K": 448.4,
        "IQ4_NL": 10000.0,
        "IQ4_XS": 11111.1,
        "MXFP4": 11111.1,
        "IQ1_S": 2500.0,
        "IQ1_M": 4761.9,
        "IQ2_XXS": 1190.5,
        "IQ2_XS": 1851.9,
        "IQ2_S": 1639.3,
        "IQ3_XXS": 877.2,
        "IQ3_S": 952.4,
        "TQ1_0": 1250.0,
        "TQ2_0": 714.3,
        "NVFP4": 11111.1,
        "Q1_0": 1612.9,
        "Q2_0": 3571.4,
    },
}
# AMX multiplies only prompts. NEON has not been measured: the table assumes no more than AVX2's.
SAME_AS = {"amx": "avx512", "avxvnni": "avx2", "neon": "avx2"}


def byte_seconds(backend: str) -> dict[str, float]:
    """Return the seconds that this machine's cores together take for a byte, by block type.

    Returns nothing on a GPU, or if the native kernels are unavailable.
    """
    if backend != "cpu":
        return {}
    from engine.kernels.native import best_isa, unavailable_reason  # imports MLX

    if unavailable_reason() is not None:
        return {}
    return core_seconds(best_isa(), cores())


def core_seconds(isa: str, count: int) -> dict[str, float]:
    """Return the seconds that `count` cores together take for a byte, by block type."""
    costs = NS_PER_KB[SAME_AS.get(isa, isa)]
    return {name: cost * 1e-12 / count for name, cost in costs.items()}
