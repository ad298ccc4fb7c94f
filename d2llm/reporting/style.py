"""How results are named and written, in one place for every table and figure."""

from __future__ import annotations

from collections.abc import Sequence

# Digits after the point of a score.
DECIMALS = 4

CONTROLLED_TEXT = (
    "The texts are generated: this says something about mechanisms on controlled text only and is no evidence "
    "about the paper's numbers."
)


def number(value: float) -> str:
    """A score as it is printed."""
    return f"{value:.{DECIMALS}f}"


def signed(value: float) -> str:
    """A difference as it is printed, with a sign that is as wide as a digit."""
    return f"{value:+.{DECIMALS}f}".replace("-", "−")


# Okabe and Ito's palette, told apart by colour-blind readers; the shape says the same once more.
COLORS: dict[str, str] = {
    "d2llm": "#D55E00",
    "bge": "#0072B2",
    "retromae": "#56B4E9",
    "llara": "#009E73",
    "sgpt": "#E69F00",
    "udever": "#CC79A7",
    "teacher": "#000000",
    "bm25": "#7F7F7F",
}
MARKERS: dict[str, str] = {
    "d2llm": "D", "bge": "o", "retromae": "s", "llara": "^", "sgpt": "v", "udever": "P", "teacher": "|", "bm25": "|",
}  # fmt: skip
OTHER_COLORS = ("#332288", "#AA4499", "#44AA99", "#882255")
OTHER_MARKERS = ("X", "*", "h", "<")

# Loss terms, told apart by line as well; those that meet in one panel differ, and differ from the method's own colour.
TERM_LOOKS: dict[str, tuple[str, str]] = {
    "info_nce": ("#000000", "-"),
    "ci": ("#0072B2", "--"),
    "cl": ("#E69F00", "-"),
    "ri_phn": ("#009E73", "-."),
    "ri_ehn": ("#CC79A7", "--"),
    "fi": ("#000000", ":"),
    "p2q": ("#56B4E9", "-"),
    "encoder_mlm": ("#E69F00", "--"),
    "decoder_mlm": ("#CC79A7", "-."),
    "language_model": ("#E69F00", "--"),
    "ebae": ("#CC79A7", "-."),
    "ebar": ("#0072B2", ":"),
}
TERM_TITLES: dict[str, str] = {
    "loss": "sum",
    "ci": "CI",
    "cl": "CL",
    "ri_phn": "RI-PHN",
    "ri_ehn": "RI-EHN",
    "fi": "FI",
    "p2q": "P2Q",
    "info_nce": "InfoNCE",
    "encoder_mlm": "encoder MLM",
    "decoder_mlm": "decoder MLM",
    "language_model": "LM",
    "ebae": "EBAE",
    "ebar": "EBAR",
}

# Behind the line of a task, and of their average.
BAND, BAND_AVERAGE = "#f6f6f6", "#ececec"
AVERAGE_TITLE = "Average"
GROUP_TITLES: dict[str, str] = {"nli": "NLI", "sts": "STS", "ir": "Retrieval"}


def look(name: str, methods: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of a method or reference row; methods without a fixed look take the spare ones in their order."""
    if name in COLORS:
        return COLORS[name], MARKERS[name]
    place = [other for other in methods if other not in COLORS].index(name)
    return OTHER_COLORS[place % len(OTHER_COLORS)], OTHER_MARKERS[place % len(OTHER_MARKERS)]


# Reference rows have strokes in plots by row; in the plane they need a mark with a middle.
POINTS: dict[str, str] = {"teacher": "p", "bm25": "8"}


def point(name: str, methods: Sequence[str]) -> tuple[str, str]:
    """`look` for a mark in the plane."""
    color, marker = look(name, methods)
    return color, POINTS.get(name, marker)


def duration(seconds: float) -> str:
    """Seconds as they are printed: three digits in the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{float(f'{seconds / size:.3g}'):g} {unit}"
    return f"{float(f'{seconds / 1e-9:.3g}'):g} ns"


def term_look(name: str, terms: list[str]) -> tuple[str, str]:
    """Colour and line of a loss term; terms without a fixed look take the spare colours in their order."""
    if name in TERM_LOOKS:
        return TERM_LOOKS[name]
    place = [other for other in terms if other not in TERM_LOOKS].index(name)
    return OTHER_COLORS[place % len(OTHER_COLORS)], ("-", "--", "-.", ":")[place // len(OTHER_COLORS) % 4]
