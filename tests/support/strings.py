"""Mixed Unicode strings from a seed, to encode: the stored token ids were made from these."""

from __future__ import annotations

import random
from collections.abc import Callable

WORDS = """
The quick brown fox jumps over the lazy dog I'm we'll they'VE it's DON'T o'clock
rock'n'roll naïve café résumé Straße Ærø Łódź žluťoučký kůň İstanbul ıspanak Ελληνικά ὀξύς
привет Мир ёлка українська Ґава ქართული მხედრული հայերեն שלום עולם مرحبا بالعالم فارسی اردو
हिन्दी नमस्ते বাংলা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල ภาษาไทย ລາວ မြန်မာ ខ្មែរ བོད་ཡིག አማርኛ
ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ᠮᠣᠩᠭᠣᠯ 한국어 안녕하세요 日本語 こんにちは カタカナ 漢字 中文 你好世界 繁體中文 𠮷野家
"""
EMOJI = """
😀 🎉 🚀 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 ❤️ ☃ ✨ 🧑🏿‍🚀 🀄 ♟ ⌚️ 1️⃣ #️⃣
"""
SYMBOLS = """
€ £ ¥ § © ® ™ ° ± × ÷ ∑ ∀ ∈ → ⇒ ■ ░ ␣ « » “ ” „ … – — • ‰ ¿ ¡ ～ 。 、 「 」 ！ ？ ： （ ） ・ 〜
﷽ ﬁ
"""
SPECIALS = """
<|endoftext|> <|im_start|> <|im_end|> <s> <unk> <|begin_of_text|> <|eot_id|>
<|start_header_id|> <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <|reserved_special_token_0|>
<repo_name> <0x41> <think> <|im_start <|im_<|im_end|>end|> [INST] ▁ ▁the [PAD151646] ø ö
[PAD100015] <0x0A>
"""
CODE = [
    "def f(x):\n    return x ** 2  # square\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; }",
    '{"key": [1, 2.5e-3, null], "s": "a\\"b"}',
    "SELECT * FROM t WHERE a <> 'b' AND c >= 10;",
    "<div class='x'>&amp; text</div>",
    "https://example.org/a/b?c=d&e=%20f#g",
    "if [ $? -ne 0 ]; then\n\texit 1\nfi\r\n",
    "#include <stdio.h>\n\n\nint main(void)\n{\n\n}\n",
    "x_1 = y2 + $var->z; // ok\n\t\t",
    "C:\\Windows\\System32\\*.dll",
    "\\begin{align} a &= b \\\\ \\end{align}",
    "!!!???...---___===+++***///|||~~~^^^```@@@###",
]
SPACES = [
    " ", "  ", "   ", "       ", "                                 ", "\t", "\t\t", "\n", "\n\n",
    "\n \n", "\r\n", "\r", " \n", "\n  ", "\x0b", "\x0c", "\xa0", "\u2003", "\u3000", "\u2028",
    "\u2029", "\u200a", "\u1680", "\x85",
]  # fmt: skip
NUMBERS = [
    "0", "7", "42", "123", "2024", "12345", "1234567890", "3.14159", "1,000,000", "-1e10", "0x1F",
    "½", "²³", "Ⅷ", "٣٤٥", "१२३४", "一二三", "１２３", "௧௨", "𝟘𝟙𝟚", "१", "⑩",
]  # fmt: skip
CONTRACTIONS = [
    "'s", "'S", "'t", "'T", "'re", "'RE", "'rE", "'ve", "'Ve", "'m", "'M", "'ll", "'LL", "'d",
    "'D", "’s", "'x", "''", "'", " 's", "n't", "'lla", "'1",
]  # fmt: skip
MARKS = [
    "\u0301", "\u0308", "\u0327", "\u20dd", "\u093c", "\u0e31", "\u05b8", "\u064b", "\ufe0f",
    "\u200d",
]  # fmt: skip
CONTROLS = [
    "\x00", "\x01", "\x07", "\x08", "\x1b[31m", "\x1c", "\x1f", "\x7f", "\x80", "\x9f", "\u200b",
    "\u200e", "\u202e", "\ufeff", "�", "\ue000", "\U000f0000", "\uffff", "\xad", "\u2060",
]  # fmt: skip
# Characters that have been in Unicode for long: every implementation classes them alike.
BLOCKS = [
    (0x20, 0x7E), (0xA1, 0x17F), (0x370, 0x377), (0x386, 0x3FF), (0x400, 0x481), (0x5D0, 0x5EA),
    (0x620, 0x64A), (0x904, 0x939), (0xE01, 0xE30), (0x10D0, 0x10F0), (0x1E00, 0x1EFF),
    (0x2010, 0x2027), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2500, 0x257F), (0x3041, 0x3096),
    (0x30A1, 0x30FA), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xFF01, 0xFF5E), (0x1D400, 0x1D454),
    (0x1F600, 0x1F64F), (0x20000, 0x20100),
]  # fmt: skip


def _any_characters(rng: random.Random) -> str:
    low, high = rng.choice(BLOCKS)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8)))


def _marked(rng: random.Random) -> str:
    return rng.choice(WORDS.split())[: rng.randint(1, 4)] + "".join(
        rng.choice(MARKS) for _ in range(rng.randint(1, 3))
    )


def _cased(rng: random.Random) -> str:
    word = rng.choice(WORDS.split())
    return "".join(rng.choice([letter.upper(), letter.lower()]) for letter in word)


def _run(rng: random.Random) -> str:
    return rng.choice(
        ["a", "A", " ", "\n", "=", "-", "é", "語", "😀", "0", ".", "\t", "ab", "\u0301"]
    ) * (rng.randint(1, 40))


PIECES: list[tuple[int, Callable[[random.Random], str]]] = [
    (12, lambda rng: " ".join(rng.choices(WORDS.split(), k=rng.randint(1, 6)))),
    (3, lambda rng: rng.choice(EMOJI.split())),
    (3, lambda rng: rng.choice(CODE)),
    (6, lambda rng: rng.choice(SPACES)),
    (4, lambda rng: rng.choice(NUMBERS)),
    (4, lambda rng: rng.choice(WORDS.split()) + rng.choice(CONTRACTIONS)),
    (2, _marked),
    (2, _cased),
    (2, _any_characters),
    (2, lambda rng: rng.choice(CONTROLS)),
    (2, lambda rng: rng.choice(SPECIALS.split())),
    (3, lambda rng: "".join(rng.choices(SYMBOLS.split(), k=rng.randint(1, 4)))),
    (1, _run),
]


def mixed_strings(count: int, seed: int = 2024) -> list[str]:
    """Make `count` strings of one to fourteen pieces; the same for the same seed."""
    rng = random.Random(seed)
    weights, makers = zip(*PIECES, strict=True)
    strings = []
    for _ in range(count):
        chosen = rng.choices(makers, weights, k=rng.randint(1, 14))
        joint = rng.choice(["", "", " "])
        strings.append(joint.join(make(rng) for make in chosen))
    return strings
