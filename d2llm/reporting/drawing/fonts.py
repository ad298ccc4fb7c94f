"""Fonts for Chinese text in figures: one of the machine's, or none.

The style's DejaVu Sans has no Chinese; a missing glyph would be drawn as an empty box.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from d2llm.run.logs import get_logger

logger = get_logger(__name__)

LATIN = "DejaVu Sans"
# The usual fonts of Linux, Windows and macOS, in this order, for equal bytes on a machine.
CHINESE = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Heiti SC",
    "Arial Unicode MS",
)
FIRST_CHINESE = 0x2E80  # East Asian scripts and full-width forms start here


def families(text: str) -> list[str] | None:
    """Font families that together hold every character of `text`, or None, with a line in the log, where Chinese ones
    are missing.
    """
    wanted = frozenset(ord(character) for character in text if ord(character) >= FIRST_CHINESE)
    if not wanted:
        return [LATIN]
    for path in _list_fonts():
        family, characters = _read_font(path)
        if wanted <= characters:
            return [LATIN, family]
    logger.warning("no font here has the Chinese of %r: figures show it in English; install Noto Sans CJK", text[:20])
    return None


def _list_fonts() -> list[Path]:
    from matplotlib.font_manager import fontManager

    if not any(entry.name in CHINESE for entry in fontManager.ttflist):
        _look_again()
    fonts = [entry for entry in fontManager.ttflist if entry.name in CHINESE and entry.style == "normal"]
    fonts.sort(key=lambda entry: (CHINESE.index(entry.name), abs(_read_weight(entry.weight) - 400), entry.fname))
    return [Path(entry.fname) for entry in fonts]


def _look_again() -> None:
    """Make fonts known that were installed since matplotlib last listed the machine's."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    listed = {entry.fname for entry in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - listed):
        try:
            if _read_font(Path(path))[0] in CHINESE:
                fontManager.addfont(path)
        except (OSError, RuntimeError):  # not a font that can be read
            continue


def _read_weight(weight: int | str) -> int:
    from matplotlib.font_manager import weight_dict

    return weight_dict.get(weight, 400) if isinstance(weight, str) else weight


@cache
def _read_font(path: Path) -> tuple[str, frozenset[int]]:
    """Family and characters of a font file."""
    from matplotlib.font_manager import get_font

    font = get_font(str(path))
    return font.family_name, frozenset(font.get_charmap())
