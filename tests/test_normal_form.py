"""The normal form of a text: what counts as one text, what does not, and what it rests on."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2llm.models.normal_form import INVISIBLE, distinct, normal_form, right_forms

TEXT = "Café Nr. 5, 东京塔？"
# Spellings of TEXT: decomposed, full width and narrow, case, blanks at the end, doubled and of other kinds, invisible
# characters.
COPIES = [
    unicodedata.normalize("NFD", TEXT), "Ｃａｆé　Ｎｒ． ５， 东京塔?", TEXT.upper(), f"{TEXT} ", f"\n{TEXT}",
    TEXT.replace(" ", "  "), TEXT.replace(" ", "\u00a0"), TEXT.replace(" ", "\t\r\n"), f"\ufeff{TEXT}",
    "\u200b".join(TEXT), TEXT.replace("f", "f\u00ad"),
]  # fmt: skip
# Other texts: an accent, punctuation, a blank, a number, traditional characters.
OTHERS = [
    "Cafe Nr. 5, 东京塔？", "Café Nr. 5, 东京塔", "CaféNr. 5, 东京塔？", "Café Nr. 6, 东京塔？", "Café Nr. 5, 東京塔？",
]  # fmt: skip


def test_copies_are_one_text_and_other_texts_are_others() -> None:
    for copy in COPIES:
        assert copy != TEXT and normal_form(copy) == normal_form(TEXT) == "café nr. 5, 东京塔?"
    assert normal_form(TEXT) not in map(normal_form, OTHERS)
    assert normal_form("ﬁne Straße ｶﾞｽ") == normal_form("FINE STRASSE ガス") == "fine strasse ガス"


def test_invisible_characters_are_those_of_unicode() -> None:
    regex = pytest.importorskip("regex")  # comes with transformers
    ignorable = regex.compile(r"\p{Default_Ignorable_Code_Point}")
    everything = "".join(map(chr, range(0x110000)))
    assert "".join(ignorable.findall(everything)) == "".join(INVISIBLE.findall(everything))


@given(st.text(max_size=12))
def test_the_form_of_a_form_is_itself_and_composition_does_not_matter(text: str) -> None:
    form = normal_form(text)
    assert normal_form(form) == form == normal_form(unicodedata.normalize("NFD", text))
    # By the plain steps, without the short ways for ASCII and full-width characters.
    visible = "".join(letter for letter in text if not INVISIBLE.match(letter))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    assert form == " ".join(folded.split())


def test_the_first_spelling_is_kept_and_right_for_a_query_is_what_any_spelling_of_it_has() -> None:
    assert distinct(["B", "a", "b ", "Ａ", "c"]) == ["B", "a", "c"]
    right = right_forms([("Q", "a", ["a", "Ｃ"]), ("q ", "B", []), ("r", "Q", ["Q"])])
    assert right == {"q": {"q", "a", "b", "c"}, "r": {"r", "q"}}  # q is right for r, and r not for q
