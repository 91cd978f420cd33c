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
        "Q4_0": 55.1,
        "Q4_1": 60.0,
        "Q5_0": 70.9,
        "Q5_1": 73.3,
        "Q8_0": 34.0,
        "Q2_K": 126.9,
        "Q3_K": 113.8,
        "Q4_K": 60.9,
        "Q5_K": 59.7,
        "Q6_K": 53.2,
        "IQ4_NL": 67.5,
        "IQ4_XS": 77.0,
        "MXFP4": 66.1,
        "IQ1_S": 425.5,
        "IQ1_M": 598.8,
        "IQ2_XXS": 305.8,
        "IQ2_XS": 306.7,
        "IQ2_S": 292.4,
        "IQ3_XXS": 255.8,
        "IQ3_S": 314.5,
        "TQ1_0": 273.2,
        "TQ2_0": 103.2,
        "NVFP4": 164.7,
        "Q1_0": 273.2,
        "Q2_0": 200.4,
    },
    "avxvnni": {
        "Q4_0": 51.2,
        "Q4_1": 54.9,
        "Q5_0": 66.5,
        "Q5_1": 68.0,
        "Q8_0": 27.7,
        "Q2_K": 116.0,
        "Q3_K": 105.4,
        "Q4_K": 56.9,
        "Q5_K": 56.4,
        "Q6_K": 51.2,
        "IQ4_NL": 58.5,
        "IQ4_XS": 64.9,
        "MXFP4": 60.4,
        "IQ1_S": 416.7,
        "IQ1_M": 684.9,
        "IQ2_XXS": 277.8,
        "IQ2_XS": 304.9,
        "IQ2_S": 301.2,
        "IQ3_XXS": 248.1,
        "IQ3_S": 309.6,
        "TQ1_0": 252.5,
        "TQ2_0": 90.2,
        "NVFP4": 159.2,
        "Q1_0": 243.3,
        "Q2_0": 185.9,
    },
    "portable": {
        "Q4_0": 463.0,
        "Q4_1": 458.7,
        "Q5_0": 456.6,
        "Q5_1": 458.7,
        "Q8_0": 235.3,
        "Q2_K": 1388.9,
        "Q3_K": 980.4,
        "Q4_K": 446.4,
        "Q5_K": 390.6,
        "Q6_K": 543.5,
        "IQ4_NL": 1333.3,
        "IQ4_XS": 1315.8,
        "MXFP4": 1369.9,
        "IQ1_S": 1351.4,
        "IQ1_M": 2127.7,
        "IQ2_XXS": 2702.7,
        "IQ2_XS": 3030.3,
        "IQ2_S": 1492.5,
        "IQ3_XXS": 1818.2,
        "IQ3_S": 826.4,
        "TQ1_0": 1162.8,
        "TQ2_0": 806.5,
        "NVFP4": 1754.4,
        "Q1_0": 2127.7,
        "Q2_0": 970.9,
    },
}
# AMX multiplies only prompts. NEON has not been measured: the table assumes no more than AVX2's.
SAME_AS = {"amx": "avx512", "neon": "avx2"}


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
