"""Regex patterns that split text before byte-level BPE, keyed by `tokenizer.ggml.pre`.

Patterns apply in sequence: each pattern splits the pieces that the previous pattern left. Text
between two matches is also a piece. The patterns come from the models' publishers and use the regex
dialect of the `tokenizers` library. For gpt-4o, tekken and kimi-k2, llama.cpp only approximates
them.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import UnsupportedError

CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
DIGITS = r"\p{N}{1,3}"
PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"

GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",)
STARCODER = (r"\p{N}", *GPT2)
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", *GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", *GPT2, r"[0-9][0-9][0-9]")
LLAMA3 = (f"{CONTRACTIONS}|{WORDS}|{DIGITS}|{PUNCTUATION}|{SPACES}",)
QWEN2 = (rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{PUNCTUATION}|{SPACES}",)
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}",
)
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
)

# A word may go on after a single space.
EXAONE_MOE = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
)


def _cased(contractions: str, exclude: str = "") -> str:
    """Return a pattern for words that end where lower case turns to upper case."""
    upper, lower = f"[{UPPER}{exclude}]", f"[{LOWER}{exclude}]"
    lead = r"[^\r\n\p{L}\p{N}]?"
    return f"{lead}{upper}*{lower}+{contractions}|{lead}{upper}+{lower}*{contractions}"


ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
GPT4O = (f"{_cased(ANY_CASE)}|{DIGITS}|{PATHS}|{SPACES}",)
TEKKEN = (rf"{_cased('')}|\p{{N}}|{PATHS}|{SPACES}",)
NOT_HAN = r"&&[^\p{Han}]"
KIMI = (rf"[\p{{Han}}]+|{_cased(ANY_CASE, NOT_HAN)}|{DIGITS}|{PUNCTUATION}|{SPACES}",)

# The letters in DeepSeek's first tokenizer: the cased alphabets in Unicode 6.
DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷ"
    "ᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂ"
    "ℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚ"
    "ａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
# The symbol and ideograph ranges include wide spaces. `(?!\s)` excludes them, as llama.cpp does.
DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{DEEPSEEK_LETTERS}]+",
    r"\s?(?:(?!\s)[!-/:-~！-／：-～‘-‟　-。])+",
    r"\s+$",
    r"(?:(?!\s)[一-龥ࠀ-一가-\x{D7FF}])+",
    r"\p{N}+",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_LLM[4], r"\p{N}")
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}",
)

# Digits in threes, counted from the end of the number.
COHERE2_MOE = (r"\d{1,3}(?=(?:\d{3})*\b)", *GPT4O)
# Scripts of Asia whose words are not separated by spaces.
ASIAN = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}"
    r"\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}\x{0E40}-\x{0E7F}\x{0E80}-\x{0EFF}\x{1780}-\x{17FF}"
    r"\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}"
)
AFMOE = (r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", f"[{ASIAN}]+", DEEPSEEK_V3[2])
LAGUNA = (r"[^\n]+|\n+", *QWEN2)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """The patterns and options of a pre-tokenizer.

    whole_words: keep a piece whole if it is a token. add_bos: whether to add BOS if the file does
    not say.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False


_ROWS: dict[str, PreTokenizer] = {
    "default": PreTokenizer(DEFAULT),
    "gpt-2 olmo mpt phi-2 mellum": PreTokenizer(GPT2),
    "smollm starcoder refact command-r mellum2": PreTokenizer(STARCODER),
    "qwen2 stablelm2 deepseek-r1-qwen hunyuan megrez solar-open": PreTokenizer(QWEN2),
    "qwen35": PreTokenizer(QWEN35),
    "llama-bpe llama3 llama-v3 lfm2 falcon3 pixtral": PreTokenizer(LLAMA3, True, True),
    "glm4 glm5": PreTokenizer(LLAMA3, True),
    "dbrx smaug-bpe chatglm-bpe": PreTokenizer(LLAMA3),
    "deepseek-llm": PreTokenizer(DEEPSEEK_LLM),
    "deepseek-coder": PreTokenizer(DEEPSEEK_CODER),
    "deepseek-v3 hunyuan-dense hy_v4 joyai-llm": PreTokenizer(DEEPSEEK_V3),
    "tekken": PreTokenizer(TEKKEN, True, True),
    "gpt-4o llama4 minimax-m2": PreTokenizer(GPT4O),
    "bailingmoe bailingmoe2": PreTokenizer(BAILING),
    "kimi-k2": PreTokenizer(KIMI),
    "exaone-moe": PreTokenizer(EXAONE_MOE),
    "falcon": PreTokenizer(FALCON),
    "cohere2moe": PreTokenizer(COHERE2_MOE),
    "afmoe": PreTokenizer(AFMOE),
    "laguna": PreTokenizer(LAGUNA),
    "gemma4": PreTokenizer((r"[^\n]+|\n+",), add_bos=True),
}
PRE_TOKENIZERS = {name: row for names, row in _ROWS.items() for name in names.split()}


def pre_tokenizer(name: str) -> PreTokenizer:
    """Return a pre-tokenizer by name. Raises UnsupportedError if the name is unknown."""
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError(f"pre-tokenizer {name!r} is not supported")
    return PRE_TOKENIZERS[name]
