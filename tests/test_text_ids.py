"""Which passages of a batch are hidden from a query: all that its training set marks as right for it, by numbers as by
comparing texts.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from d2llm.config.data import TrainingSet
from d2llm.data.files import examples
from d2llm.data.negatives import mine as negatives
from d2llm.methods.contrastive import allowed_positives, of_others
from d2llm.methods.text_ids import PairTextIds
from d2llm.training.pairs import PairData

COUNT = 3  # hard negatives of a row


def faq(folder: Path, copies: bool) -> PairData:
    """Training data of a small file of questions, each with three right answers of forty; with `copies` every other row
    is in capitals.
    """
    rows = [
        {"query": f"how do i do thing {i}?", "passage": f"answer {(i * step + step) % 40}"}
        for i, step in itertools.product(range(60), (1, 3, 7))
    ]
    if copies:
        rows[1::2] = [{key: text.upper() for key, text in row.items()} for row in rows[1::2]]
    file = folder / "faq.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rng = np.random.default_rng(0)
    pairs, passages, _ = examples.judged("faq", TrainingSet(file=str(file), mode="asymmetric"), rng)
    train, pool = examples.training_pairs(pairs, {"faq": passages})
    texts = pool["text"].tolist()
    wrong = [[text for text in texts if text not in set(marked)] for marked in train["marked"]]
    train["negatives"] = [[others[i] for i in rng.permutation(len(others))[:COUNT]] for others in wrong]
    train["pack"] = negatives.pack(len(train), 4, rng)
    return PairData(train[train["pack"] >= 0].sort_values("pack").reset_index(drop=True), None)


def right_by_loops(data: PairData) -> dict[str, set[str]]:
    """By query, in lower case: the texts that the rows mark as right for it, and itself."""
    right: dict[str, set[str]] = {}
    for query, marked in zip(data.pairs["query"], data.pairs["marked"], strict=True):
        right.setdefault(query.lower(), {query.lower()}).update(text.lower() for text in marked)
    return right


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("size", [16, 64])
def test_no_right_passage_of_the_batch_is_a_negative_and_every_other_is(
    size: int, copies: bool, tmp_path: Path
) -> None:
    data = faq(tmp_path, copies)
    right = right_by_loops(data)
    missed = queries = 0
    for batch in data.batches(size, 20, 1):
        shape = (len(batch), len(batch), COUNT)
        hard, mask = of_others(torch.arange(np.prod(shape)).view(shape), torch.ones(shape[1:], dtype=torch.bool), batch)
        places = [(j, k) for j in range(len(batch)) for k in range(COUNT)]
        allowed = allowed_positives(batch)
        for i, query in enumerate(batch.queries):
            known = right[query.lower()]
            assert allowed[i].tolist() == [text.lower() not in known for text in batch.positives]
            others = [(j, k) for j, k in places if j != i]
            assert hard[i].tolist() == [(i * len(batch) + j) * COUNT + k for j, k in others]
            assert mask[i].tolist() == [batch.negatives[j][k].lower() not in known for j, k in others]
            # What the rows of the batch alone would have told.
            own = {text for asked, text in zip(batch.queries, batch.positives, strict=True) if asked == query}
            missed += any(text.lower() in known and text not in own for text in batch.positives)
            queries += 1
    assert missed / queries > {16: 0.25, 64: 0.7}[size]


def test_a_data_set_says_what_is_right_in_itself_and_in_its_direction() -> None:
    frame = pd.DataFrame(
        [("s", "q", "p", ["p", "x"]), ("s", "r", "q", ["q"]), ("t", "q", "y", ["y"]), ("t", "z", "p", ["p"])],
        columns=["dataset", "query", "positive", "marked"],
    )
    columns = (frame[name].tolist() for name in ("dataset", "query", "positive"))
    ids = PairTextIds(*columns, [["x"], ["p"], ["x"], ["q"]], frame["marked"])
    first, second = ids.of([0, 1]), ids.of([2, 3])
    assert first.are_right(first.positives).tolist() == [[True, True], [False, True]]  # q itself; r has no say about p
    assert first.are_right(first.negatives)[:, :, 0].tolist() == [[True, True], [False, False]]
    assert second.are_right(second.positives).tolist() == [[True, False], [False, True]]  # p is, in the other set
    assert second.are_right(second.negatives)[:, :, 0].tolist() == [[False, True], [False, False]]
    assert second.narrowed(0).are_right(second.narrowed(0).negatives).shape == (2, 2, 0)
