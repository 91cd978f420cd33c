"""The quantisations in file names, in order of quality, and the order in which to choose one.

The order up to Q6_K follows Artefact2's median KL divergences of Mistral-7B
(gist.github.com/Artefact2/b5f810600771265fc1e39442288e8ec9: IQ2_XXS 0.175, IQ2_M 0.070, Q2_K 0.059,
IQ3_XXS 0.033, Q3_K_S 0.030). Names that are not measured there are placed by their bits per weight
next to the mix they extend: Q4_K_L is Q4_K_M with a larger embedding. "UD-" (unsloth) is a better
choice of types for the same name, so it ranks just above the plain name.
"""

from __future__ import annotations

from collections.abc import Iterable

# Each row from worst to best.
BELOW = (
    *("Q1_0", "TQ1_0", "IQ1_S", "IQ1_M", "TQ2_0", "Q2_0"),  # TQ1_0, TQ2_0, Q2_0: no codebook
    *("IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K_S", "IQ2_M", "Q2_K", "Q2_K_L", "Q2_K_XL"),
    *("IQ3_XXS", "Q3_K_XS", "Q3_K_S", "IQ3_XS", "IQ3_S", "IQ3_M"),
    *("Q3_K", "Q3_K_M", "Q3_K_L", "Q3_K_XL"),
)
FOUR_BITS = (
    *("Q4_0", "MXFP4_MOE", "Q4_1", "NVFP4", "MXFP4"),  # MXFP4_MOE: converted, not trained so
    *("IQ4_XS", "IQ4_NL", "IQ4_NL_XL", "Q4_K_S", "Q4_K", "Q4_K_M", "Q4_K_L", "Q4_K_XL"),
)
ABOVE = (
    *("Q5_0", "Q5_K_S", "Q5_1", "Q5_K", "Q5_K_M", "Q5_K_L", "Q5_K_XL"),
    *("Q6_K_S", "Q6_K", "Q6_K_L", "Q6_K_XL", "Q8_0", "Q8_0_L", "Q8_K_XL"),
    *("FP16", "F16", "BF16", "FP32", "F32"),
)
QUALITY = {name: rank for rank, name in enumerate((*BELOW, *FOUR_BITS, *ABOVE))}


def quality(quant: str) -> float | None:
    """Return the rank of a quantisation, higher is better, or None if its name is unknown."""
    plain = quant.removeprefix("UD-")
    rank = QUALITY.get(plain)
    return rank if rank is None or plain == quant else rank + 0.5


def preferred(quants: Iterable[str], default: str) -> list[str]:
    """Order quantisations by preference, if all of them fit. Drops unknown names.

    First the default, plain or dynamic. Then those of four bits, best first: more bits cost speed
    and memory for little quality. Then those above, smallest first, and those below, best first.
    """

    def key(quant: str) -> tuple[int, float]:
        rank, plain = quality(quant) or 0, quant.removeprefix("UD-")
        if default in (quant, plain):
            return 0, rank
        if plain in FOUR_BITS:
            return 1, -rank
        return (2, rank) if plain in ABOVE else (3, -rank)

    return sorted((quant for quant in quants if quality(quant) is not None), key=key)
