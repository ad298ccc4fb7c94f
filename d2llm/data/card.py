"""The data card: counts, label balance, lengths, phenomena and examples of everything the data stage wrote, as JSON and
Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import pandas as pd

from d2llm.data.leaks import Frames, Report, Tasks
from d2llm.run.schemas import GROUPED_BY

EXAMPLES = 2  # shown per phenomenon or data set


class Card(TypedDict):
    """The card: a row a training set, a split of a task, a split and mode of the teacher's examples; the leak check's
    report; and of a run on files a row a file that was read (`build.read_files`).
    """

    training: list[dict[str, Any]]
    evaluation: list[dict[str, Any]]
    teacher: list[dict[str, Any]]
    leaks: Report
    files: NotRequired[list[dict[str, Any]]]


def summarise(
    train: pd.DataFrame,
    pool: pd.DataFrame,
    tasks: Tasks,
    teacher: dict[str, pd.DataFrame],
    leaks: Report,
    counts: Mapping[str, Mapping[str, int]] | None = None,
    dropped: Mapping[str, Mapping[str, int]] | None = None,
    bounds: Mapping[str, Mapping[str, list[float]]] | None = None,
) -> Card:
    """The card as plain values; `counts`, `dropped` and `bounds` as the source gives them (`build.Made`)."""

    def left_out(name: str) -> dict[str, Any]:
        reasons = (dropped or {}).get(name)
        return {"dropped": dict(reasons)} if reasons else {}

    return {
        "training": [
            _describe_training(name, part, pool[pool["dataset"] == name])
            | ({} if counts is None else dict(counts[name]))
            | left_out(f"train/{name}")
            for name, part in train.groupby("dataset", sort=False)
        ],
        "evaluation": [
            {"task": name, "split": split, **_describe_task(frames), **left_out(f"{name}/{split}")}
            | _describe_groups_of(frames, (bounds or {}).get(f"{name}/{split}", {}))
            for split, sets in tasks.items()
            for name, frames in sets.items()
        ],
        "teacher": [
            {"split": split, "mode": mode, **_describe_groups(part)}
            for split, frame in teacher.items()
            for mode, part in frame.groupby("mode")
        ],
        "leaks": leaks,
    }


def counted(reasons: Mapping[str, int]) -> str:
    """What was left out, on one line: "3 rows without a text, label or score, 2 rows labelled '-'"."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _measure_lengths(texts: pd.Series) -> dict[str, float]:
    lengths = texts.str.len()
    return {"mean": round(float(lengths.mean()), 1), "longest": int(lengths.max())}


def _describe_groups(groups: pd.DataFrame) -> dict[str, object]:
    return {
        "groups": len(groups),
        "pairs": int(groups["passages"].str.len().sum()),
        "share_yes": float(np.mean(np.concatenate([np.asarray(label) for label in groups["label"]]))),
    }


def _describe_training(name: str, part: pd.DataFrame, pool: pd.DataFrame) -> dict[str, object]:
    first = part.iloc[0]
    return {
        "dataset": name,
        "mode": first["mode"],
        "pairs": len(part),
        "queries": int(part["query"].nunique()),
        "pool": len(pool),
        "query_characters": _measure_lengths(part["query"]),
        "positive_characters": _measure_lengths(part["positive"]),
        "examples": part[["query", "positive"]].head(EXAMPLES).to_dict("records"),
    }


def without_examples(card: Card) -> Card:
    """The card without a text: counts, lengths and digests alone."""

    def stripped(value: Any) -> Any:
        if isinstance(value, list):
            return [stripped(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {key: stripped(item) for key, item in value.items() if key not in ("example", "examples")}

    return cast("Card", {key: stripped(value) if key != "leaks" else value for key, value in card.items()})


def _describe_groups_of(frames: Frames, bounds: Mapping[str, list[float]]) -> dict[str, Any]:
    """By way of grouping: how many examples each group has, and where the lower two thirds end."""
    frame = frames["pairs"] if "pairs" in frames else frames["queries"]
    groups: dict[str, dict[str, Any]] = {}
    for column in frame.columns[frame.columns.str.startswith(GROUPED_BY)]:
        name = column.removeprefix(GROUPED_BY)
        counts = frame.loc[frame[column] != "", column].value_counts(sort=False).sort_index()
        groups[name] = {"n": {str(key): int(count) for key, count in counts.items()}}
        if name in bounds:
            groups[name]["thirds_end_at"] = bounds[name]
    return {"groups": groups} if groups else {}


def _describe_task(frames: Frames) -> dict[str, object]:
    return _describe_pairs(frames["pairs"]) if "pairs" in frames else _describe_retrieval(frames)


def _describe_pairs(frame: pd.DataFrame) -> dict[str, object]:
    value = "label" if "label" in frame else "score"
    phenomena = {
        name: {
            "n": len(part),
            f"mean_{value}": round(float(part[value].mean()), 3),
            "example": [part["query"].iloc[0], part["passage"].iloc[0], float(part[value].iloc[0])],
        }
        for name, part in frame.groupby("phenomenon")
    }
    return {
        "n": len(frame),
        f"mean_{value}": round(float(frame[value].mean()), 3),
        "characters": _measure_lengths(pd.concat([frame["query"], frame["passage"]])),
        "phenomena": phenomena,
    }


def _describe_retrieval(frames: dict[str, pd.DataFrame]) -> dict[str, object]:
    queries, corpus, qrels = frames["queries"], frames["corpus"], frames["qrels"]
    texts = corpus.set_index("id")["text"]
    relevant = qrels[qrels["relevance"] > 0]
    first = relevant.drop_duplicates("query_id").set_index("query_id")["doc_id"]
    answered = queries["id"].isin(first.index)
    phenomena = {}
    for name, part in queries.groupby("phenomenon"):
        shown = part[answered[part.index]].head(1)
        example = [shown["text"].iloc[0], texts[first[shown["id"].iloc[0]]]] if len(shown) else [part["text"].iloc[0]]
        phenomena[name] = {"n": len(part), "example": example}
    unanswered = int((~answered).sum())
    return {
        "n": len(queries),
        "passages": len(corpus),
        "relevant_per_query": round(len(relevant) / len(queries), 2),
        **({"without_relevant": unanswered} if unanswered else {}),
        "characters": _measure_lengths(queries["text"]),
        "passage_characters": _measure_lengths(corpus["text"]),
        "phenomena": phenomena,
    }


def markdown(card: Card) -> str:
    """The card for a reader."""
    lines = _write_training(card["training"])
    lines += ["", "## Evaluation sets", ""]
    for row in card["evaluation"]:
        lines += _write_task(row)
    lines += _write_table("## Teacher's examples", ("split", "mode", "groups", "pairs", "share yes"))
    lines += [
        f"| {row['split']} | {row['mode']} | {row['groups']} | {row['pairs']} | {row['share_yes']:.2f} |"
        for row in card["teacher"]
    ]
    leaks = card["leaks"]
    lines += ["", "## Leaks", ""]
    lines += [f"{leaks['removed']} examples removed from {leaks.get('removed_from', 'evaluation')}.", ""]
    lines += ["| task | counts |", "| --- | --- |"]
    lines += [
        f"| {name} | {', '.join(f'{key.replace(chr(95), chr(32))} {value}' for key, value in row.items())} |"
        for name, row in leaks["tasks"].items()
    ]
    if card.get("files"):
        lines += ["", *_write_table("## Files read", ("key", "file", "bytes", "SHA-256"))]
        lines += [f"| {row['key']} | {row['file']} | {row['bytes']} | {row['sha256']} |" for row in card["files"]]
    return "\n".join(lines) + "\n"


def _write_table(title: str, columns: Sequence[str]) -> list[str]:
    """A title and the head of the table under it."""
    return [title, "", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]


def _write_training(rows: list[dict[str, Any]]) -> list[str]:
    """The training sets, and what was left out of them, contradicts itself or was removed."""
    lines = ["# Data card", ""]
    shown = any("examples" in row for row in rows)
    columns = ("set", "mode", "pairs", "queries", "pool")
    lines += _write_table("## Training pairs", (*columns, "example") if shown else columns)
    for row in rows:
        line = f"| {row['dataset']} | {row['mode']} | {row['pairs']} | {row['queries']} | {row['pool']} |"
        for example in row.get("examples", ())[:1]:
            line += f" {example['query']} → {example['positive']} |"
        lines.append(line)
    left_out = {row["dataset"]: row["dropped"] for row in rows if row.get("dropped")}
    if left_out:
        lines += ["", *(f"Left out of {name}: {counted(reasons)}." for name, reasons in left_out.items())]
    if torn := _list_counts(rows, "contradictions"):
        lines += ["", f"Pairs that a set judges right and wrong, of which the first row counts: {torn}."]
    if removed := _list_counts(rows, "removed"):
        lines += [
            "",
            f"Judged pairs that evaluation sets hold, or near copies of them, removed from training: {removed}.",
        ]
    return lines


def _list_counts(rows: list[dict[str, Any]], key: str) -> str:
    """The sets whose count of this name is not 0, on one line."""
    counts = {row["dataset"]: row[key] for row in rows if row.get(key)}
    return ", ".join(f"{count} of {name}" for name, count in counts.items())


def _write_task(row: dict[str, Any]) -> list[str]:
    """One split of an evaluation set: its size, and its phenomena with an example each."""
    size = (
        f"{row['n']} queries, {row['passages']} passages, {row['relevant_per_query']} relevant a query"
        if "passages" in row
        else f"{row['n']} pairs"
    )
    size += f", {row['without_relevant']} queries without a relevant passage" if "without_relevant" in row else ""
    lines = [f"### {row['task']}, {row['split']}: {size}", ""]
    lines += [f"Left out: {counted(row['dropped'])}.", ""] if "dropped" in row else []
    shown = any("example" in entry for entry in row["phenomena"].values())
    lines += (
        ["| phenomenon | n | example |", "| --- | --- | --- |"] if shown else ["| phenomenon | n |", "| --- | --- |"]
    )
    for name, entry in row["phenomena"].items():
        example = f" {' / '.join(map(str, entry['example']))} |" if shown else ""
        lines.append(f"| {name} | {entry['n']} |{example}")
    for name, group in row.get("groups", {}).items():
        counts = ", ".join(f"{key} {count}" for key, count in group["n"].items())
        ends = " and ".join(f"{end:g}" for end in group.get("thirds_end_at", ()))
        lines += ["", f"By {name}: {counts}{f' (thirds end at {ends})' if ends else ''}."]
    return [*lines, ""]
