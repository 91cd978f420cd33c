"""Format numbers and tables for people.

Sizes are decimal (1 GB = 10^9 bytes). Memory is also shown in GiB (2^30 bytes), the unit in which
it is sold.
"""

from __future__ import annotations

from collections.abc import Mapping

_DECIMAL = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_COUNTS = (("T", 10**12), ("B", 10**9), ("M", 10**6))


def size(size_bytes: int) -> str:
    """Format a size in bytes: 98.4 MB, 18.6 GB, 1,008 GB."""
    for unit, scale in _DECIMAL:
        if size_bytes >= scale:
            return f"{size_bytes / scale:,.{int(size_bytes < 1000 * scale)}f} {unit}"
    return f"{size_bytes} B"


def gigabytes(size_bytes: int) -> str:
    """Format a memory size in both units: 18.6 GB (17.3 GiB)."""
    if size_bytes < 10**8:
        return f"{size_bytes / 10**6:.1f} MB ({size_bytes / 2**20:.1f} MiB)"
    return f"{size_bytes / 10**9:.1f} GB ({size_bytes / 2**30:.1f} GiB)"


def count(number: int | None) -> str:
    """Format a parameter count: 30.5B, 135M, or a dash if unknown."""
    if number is None:
        return "-"
    for unit, scale in _COUNTS:
        if number >= scale:
            return f"{number / scale:.3g}{unit}"
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """Format a count with its noun, which takes an s in the plural: 1 token, 2,048 tokens."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def shares(sizes: Mapping[str, int]) -> str:
    """Format what a whole consists of: "IQ2_XS 41 %, Q6_K 9 %, F32 <1 %", in the given order."""
    whole = max(sum(sizes.values()), 1)
    parts = ((name, 100 * part / whole) for name, part in sizes.items())
    return ", ".join(
        f"{name} {percent:.0f} %" if percent >= 1 else f"{name} <1 %" for name, percent in parts
    )


def tokens(number: int) -> str:
    """Format a token count: 820, 6.1k, 32k. One k is 1,024 tokens."""
    return f"{number}" if number < 1024 else f"{number / 1024:.1f}".removesuffix(".0") + "k"


def duration(seconds: float) -> str:
    """Format a duration: 48 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
