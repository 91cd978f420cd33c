"""The order of quantisations, and the choices that published listings offer."""

from __future__ import annotations

import pytest

from catalog import resolve
from catalog.file_names import choices, quant_of
from catalog.quants import QUALITY, preferred, quality
from engine.kernels.sizes import supports

UNSLOTH = (
    "UD-TQ1_0 UD-IQ1_S UD-IQ1_M UD-IQ2_XXS UD-IQ2_M UD-Q2_K_XL UD-IQ3_XXS UD-IQ3_S UD-Q3_K_M "
    "UD-Q3_K_XL UD-IQ4_XS UD-IQ4_NL UD-IQ4_NL_XL UD-Q4_K_S UD-Q4_K_M UD-Q4_K_XL UD-Q5_K_S "
    "UD-Q5_K_XL UD-Q6_K UD-Q6_K_XL Q8_0 UD-Q8_K_XL BF16"
)
BARTOWSKI = (
    "IQ2_XXS IQ2_XS IQ2_S IQ2_M Q2_K Q2_K_L IQ3_XXS Q3_K_S IQ3_XS IQ3_M Q3_K_M Q3_K_L Q3_K_XL "
    "Q4_0 Q4_1 IQ4_XS IQ4_NL Q4_K_S Q4_K_M Q4_K_L Q5_K_S Q5_K_M Q5_K_L Q6_K Q6_K_L Q8_0 bf16"
)
MRADERMACHER = (
    "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S Q2_K_S IQ2_M Q2_K IQ3_XXS Q3_K_S IQ3_XS IQ3_S IQ3_M Q3_K_M "
    "Q3_K_L Q4_0 Q4_1 IQ4_XS IQ4_NL Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K"
)
LISTINGS = {
    "unsloth": [f"Qwen3-30B-A3B-{quant}.gguf" for quant in UNSLOTH.split()],
    "bartowski": [f"org_Model-1.5-{quant}.gguf" for quant in BARTOWSKI.split()],
    "mradermacher": [f"Model.i1-{quant}.gguf" for quant in MRADERMACHER.split()],
    "ggml-org": ["gemma-3-4b-it-Q4_0.gguf", "gemma-3-4b-it-Q8_0.gguf", "gemma-3-4b-it-f16.gguf"],
    "nvidia": ["Nemotron-NVFP4.gguf", "Nemotron-Q8_0.gguf", "Nemotron-BF16.gguf"],
    "sharded": [
        f"{quant}/K2-{quant}-0000{part}-of-00003.gguf"
        for quant in ("UD-IQ1_S", "UD-Q2_K_XL", "Q8_0")
        for part in (1, 2, 3)
    ],
    "in folders": [f"{quant}/model.gguf" for quant in ("Q2_K", "m-IQ3_XXS", "q4_k_m")],
    "in the middle": ["m-Q2_K-imat.gguf", "m-IQ4_XS-imat.gguf", "m-Q4_K_M-imat.gguf"],
}


@pytest.mark.parametrize("publisher", LISTINGS)
def test_every_published_name_is_ranked_in_the_order_of_its_listing(publisher: str) -> None:
    names = LISTINGS[publisher]
    ranks = [quality(quant_of(name) or "") for name in names]
    assert None not in ranks
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("publisher", LISTINGS)
def test_every_quantisation_of_a_listing_is_a_choice(publisher: str) -> None:
    found = choices([*LISTINGS[publisher], "mmproj-F16.gguf", "imatrix.gguf", "README.md"])
    offered = {quant_of(name) for name in LISTINGS[publisher]}
    assert {s.quant for s in found} == offered
    assert [s.quant for s in found] == preferred(offered, "Q4_K_M")


@pytest.mark.parametrize(
    ("quants", "order"),
    [
        ("Q8_0 Q2_K Q4_K_M Q6_K", "Q4_K_M Q6_K Q8_0 Q2_K"),
        ("UD-Q4_K_XL UD-Q4_K_M Q4_K_S", "UD-Q4_K_M UD-Q4_K_XL Q4_K_S"),
        ("UD-Q2_K_XL Q8_0 BF16", "Q8_0 BF16 UD-Q2_K_XL"),
        ("Q2_K UD-Q2_K_XL UD-IQ2_M UD-IQ3_XXS", "UD-IQ3_XXS UD-Q2_K_XL Q2_K UD-IQ2_M"),
        ("BF16 NVFP4 Q8_0", "NVFP4 Q8_0 BF16"),
        ("TQ1_0 IQ1_S UD-IQ1_S IQ2_KS Q4_0_4_8", "UD-IQ1_S IQ1_S TQ1_0"),
    ],
)
def test_four_bits_come_first_then_more_then_less(quants: str, order: str) -> None:
    assert preferred(quants.split(), "Q4_K_M") == order.split()


@pytest.mark.parametrize("quant", QUALITY)
def test_every_ranked_quantisation_can_be_read(quant: str) -> None:
    assert supports(quant) and supports(f"UD-{quant}")
    assert quant_of(f"m-{quant}.gguf") == quant_of(f"{quant}/m.gguf") == quant


def test_files_of_several_models_are_no_choice_unless_one_is_the_default() -> None:
    small, large = ["a-0.6b-Q2_K.gguf", "a-0.6b-Q8_0.gguf"], ["a-8b-Q2_K.gguf", "a-8b-Q4_K_M.gguf"]
    assert choices([*small, "b-Q8_0.gguf"]) == ()
    assert [s.names[0] for s in choices(small + large)] == large[::-1]
    assert choices([*large, "a-0.6b-Q4_K_M.gguf"]) == ()
    assert choices([*large, "old/a-8b-Q4_K_M.gguf"]) == ()


def test_a_quantisation_with_a_missing_part_is_no_choice() -> None:
    names = ["m-Q4_K_M-00001-of-00002.gguf", "m-Q3_K_M.gguf"]
    assert [s.quant for s in choices(names)] == ["Q3_K_M"]


def test_a_folder_limits_the_choices() -> None:
    names = ["a/m-Q2_K.gguf", "a/m-Q3_K_M.gguf", "b/n-Q4_K_M.gguf"]
    assert [s.quant for s in choices(names, "a")] == ["Q3_K_M", "Q2_K"]


@pytest.mark.parametrize(
    ("name", "is_open"),
    [
        ("qwen3-30b-a3b", True),
        ("hf:org/repo", True),
        ("hf:org/repo/tree/main/Q4", True),
        ("qwen3-30b-a3b:Q4_K_M", False),
        ("hf:org/repo:Q8_0", False),
        ("hf:org/repo/m.gguf", False),
        ("smollm2-135m", False),  # from a wheel
    ],
)
def test_a_name_with_a_quantisation_or_a_file_leaves_no_choice(name: str, is_open: bool) -> None:
    assert resolve(name).is_open == is_open
