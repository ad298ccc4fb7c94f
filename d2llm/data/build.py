"""Stages `texts` and `data`: write everything the other stages read of the configured source, with its data card and
leak check.

Layouts are the contracts of docs/files.md; a source only has to fill them. How examples are
generated is left to `world/generate.py`, how one's own files become examples to `files/examples.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from d2llm.config.data import SOURCE, TASKS, HubTable, MtebSet
from d2llm.data import card, enough, leaks
from d2llm.data.files import examples
from d2llm.data.world import generate as world
from d2llm.data.world import surface
from d2llm.run.artifacts import atomic, read_frame, read_json, write_frame, write_json, write_text
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths
from d2llm.run.provenance import content_digest, contents

if TYPE_CHECKING:
    from d2llm.config.data import FilesSettings, TaskSet, WorldSettings
    from d2llm.config.schema import Config
    from d2llm.data.files.examples import Dropped
    from d2llm.data.files.groups import Bounds
    from d2llm.data.leaks import Report

# Score from which a graded pair is a training positive (as NLI-zh takes its STS-B pairs).
STS_POSITIVE = 4.0
# Right sentences a left one meets in the STS training sets: a match and a near miss of the same sentence are both in
# the pool.
PARTNERS = 2
SHAPES = ("question", "keyword", "claim")


@dataclass(frozen=True)
class Made:
    """What a source makes: training pairs and pool, the teacher's groups by split, the sets by split and name, and
    their headers.

    `counts`: by training set, how many pairs it judges right and wrong (`contradictions`) and how many evaluation sets
    took (`removed`); None where labels are made, not read. `dropped`: what was left out of a training set
    ("train/<set>") or of a split of an evaluation set ("<set>/<split>"), and how often. `bounds`: by "<set>/<split>",
    where its thirds end.
    """

    train: pd.DataFrame
    pool: pd.DataFrame
    teacher: dict[str, pd.DataFrame]
    tasks: leaks.Tasks
    headers: dict[str, dict[str, object]]
    leaks: Report
    counts: dict[str, dict[str, int]] | None = None
    dropped: dict[str, Dropped] = field(default_factory=dict)
    bounds: dict[str, Bounds] = field(default_factory=dict)


def run(config: Config) -> None:
    """Make or read the data, check for leaks and write.

    Raises DataError for a training set that cannot be trained on (`enough`).
    """
    paths = Paths.of(config)
    content = from_files(config) if config.data.source == "files" else from_world(config)
    log = get_logger(__name__)
    log.info("training pairs: %d, pool %d", len(content.train), len(content.pool))
    log.info("leaks removed: %s", content.leaks["removed"])
    write_frame(paths.train_pairs, content.train)
    write_frame(paths.pool, content.pool)
    write_frame(paths.teacher_train, content.teacher["train"])
    write_frame(paths.teacher_dev, content.teacher["dev"])
    with atomic(paths.tasks) as folder:
        write_tasks(folder, content)
    write_json(paths.leaks, content.leaks)
    for name, counts in (content.counts or {}).items():
        if counts["contradictions"]:
            log.warning(
                "%s: %d pairs are judged right and wrong by its rows; the first row counts",
                name,
                counts["contradictions"],
            )
        if counts["removed"]:
            log.warning("%s: %d pairs are removed, as evaluation sets hold them", name, counts["removed"])
    for name, reasons in content.dropped.items():
        if reasons:
            log.warning("%s: left out: %s", name, card.counted(reasons))
    summary = card.summarise(
        *(content.train, content.pool, content.tasks, content.teacher, content.leaks),
        *(content.counts, content.dropped, content.bounds),
    )
    if config.data.source == "files":
        summary["files"] = read_files(config)
    write_json(paths.card_json, summary)
    write_text(paths.card_md, card.markdown(summary))


def from_world(config: Config) -> Made:
    """Generate the data; what an evaluation set shares with training is removed from the set."""
    settings = config.data.world
    train, pool = training_pairs(settings)
    enough.check(train, pool, config.training.pack, config.negatives.per_query)
    tasks = {split: evaluation_tasks(settings, split) for split in ("dev", "test")}
    teacher = {split: teacher_groups(settings, split) for split in ("train", "dev")}
    unlabelled = read_frame(Paths.of(config).pretraining, {"text": "str"})
    report, tasks = leaks.remove(tasks, leaks.seen_texts(train, pool, teacher["train"], unlabelled))
    headers: dict[str, dict[str, object]] = {}
    for name, (title, kind, group, description) in TASKS.items():
        headers[name] = {"name": name, "title": title, "type": kind, "group": group, "description": description}
        if kind == "sts":
            headers[name] |= {"min_score": 0, "max_score": 5 if name == "sts_graded" else 1}
    return Made(train, pool, teacher, tasks, headers, report)


def from_files(config: Config) -> Made:
    """Read one's own files; what an evaluation set shares with training is removed from training, so that the set
    stays whole.
    """
    settings = local_files(config)
    tasks, dropped, held = files_tasks(settings)
    everything, passages, dropped_of_training = judged_pairs(settings, config.training.pack)
    dropped |= dropped_of_training
    remaining = left_pairs(everything, held, config.training.pack)
    train, pool = examples.training_pairs(remaining, passages)
    enough.check(train, pool, config.training.pack, config.negatives.per_query)
    groups = examples.teacher_groups(remaining, pool, settings.teacher_negatives, settings.teacher_dev, settings.seed)
    report, _ = leaks.remove(tasks, examples.seen(everything, passages))
    for row in report["tasks"].values():
        row["removed"] = 0
    report["removed"], report["removed_from"] = len(everything) - len(remaining), "training"
    tasks = examples.with_familiarity(tasks, examples.seen(remaining, passages))
    tasks, bounds = examples.with_groups(tasks, local_tasks(settings), settings.breakdowns, settings.negation)
    headers = {name: header(name, task) for name, task in local_tasks(settings).items()}
    for name, task in config.data.files.tasks.items():
        if isinstance(task, MtebSet):
            splits = {split: getattr(task, split) for split in ("dev", "test")}
            # What mteb knows by this name is the whole set.
            whole = [split for split in splits if task.sample is None and not lost(dropped.get(f"{name}/{split}", {}))]
            headers[name]["mteb"] = mteb_source(config, task) | {"split": splits, "whole": whole}
    counts = {
        str(name): {
            "contradictions": int(part["contradicted"].sum()),
            "removed": int((everything["dataset"] == name).sum()) - len(part),
        }
        for name, part in remaining.groupby("dataset", sort=False)
    }
    return Made(train, pool, groups, tasks, headers, report, counts, dropped, bounds)


def read_files(config: Config) -> list[dict[str, Any]]:
    """Every file of one's own and every download that the data is made of, with its size and SHA-256, so that two runs
    can be seen to have read the same text. A file is named as the config names it, without the folder.
    """
    settings, downloads = config.data.files, Paths.of(config).downloads
    rows = []
    for key, path in settings.paths().items():
        shown = os.path.relpath(path, settings.folder)
        rows.append({"key": ".".join(key), "file": Path(path).name if shown.startswith("..") else shown, **sized(path)})
    for name, table in settings.downloads().items():
        about = f"{table.repo} {table.revision}" if isinstance(table, HubTable) else f"mteb {table.mteb}"
        rows.append({"key": name, "file": about, **sized(downloads / name)})
    return rows


def sized(path: str | Path) -> dict[str, Any]:
    """Bytes and digest of a file, or of all files of a folder."""
    return {"bytes": sum(file.stat().st_size for file in contents(Path(path))), "sha256": content_digest(path)}


def lost(dropped: Dropped) -> int:
    """How many examples of a split were left out that mteb's own class would have evaluated."""
    return sum(dropped.values()) - dropped.get(examples.UNJUDGED, 0)


def mteb_source(config: Config, task: MtebSet) -> dict[str, Any]:
    """What the download of a set of mteb's recorded about it."""
    return read_json(Paths.of(config).download(task.name) / SOURCE)


def local_files(config: Config) -> FilesSettings:
    """The config's files as they lie on this machine; a set of mteb's whose `scores` are left open has the bounds of
    mteb's class.
    """
    settings = config.data.files.local(Paths.of(config).downloads)
    tasks = dict(settings.tasks)
    for name, task in config.data.files.tasks.items():
        place = Paths.of(config).download(task.name) / SOURCE if isinstance(task, MtebSet) else None
        if isinstance(task, MtebSet) and task.type == "sts" and task.scores is None and place and place.exists():
            tasks[name] = local_tasks(settings)[name].model_copy(update={"scores": tuple(read_json(place)["scores"])})
    return settings.model_copy(update={"tasks": tasks})


def header(name: str, task: TaskSet) -> dict[str, object]:
    """The content of task.json for a set of files."""
    title = (task.title or name) + (f" (sample of {task.sample})" if task.sample else "")
    bounds: dict[str, object] = {"min_score": task.scores[0], "max_score": task.scores[1]} if task.type == "sts" else {}
    bounds["splits"] = [split for split in ("dev", "test") if getattr(task, split) is not None]
    description: dict[str, object] = {
        "title": title,
        "description": task.description or title,
        "language": task.language,
    }
    if task.ignore_identical_ids:
        description["ignore_identical_ids"] = True
    return {"name": name, "type": task.type, "group": task.group, **description, **bounds}


def local_tasks(settings: FilesSettings) -> dict[str, TaskSet]:
    """The evaluation sets of what `FilesSettings.local` gives, which has none of mteb's left."""
    return cast("dict[str, TaskSet]", settings.tasks)


def files_tasks(settings: FilesSettings) -> tuple[leaks.Tasks, dict[str, Dropped], leaks.Held]:
    """The evaluation sets of the files, by split and name; what was left out of each; what all of them hold, in their
    samples or not. A dev set is without what any test set holds.
    """
    tasks: leaks.Tasks = {"dev": {}, "test": {}}
    dropped: dict[str, Dropped] = {}
    held: dict[str, leaks.Held] = {"dev": leaks.Held(), "test": leaks.Held()}
    for split in ("test", "dev"):
        tested = held["test"] if split == "dev" else None
        for name, task in local_tasks(settings).items():
            loaded = examples.evaluation_set(name, task, split, files_rng(settings, f"{split} {name}"), tested)
            if loaded is not None:
                tasks[split][name], dropped[f"{name}/{split}"] = loaded.frames, loaded.dropped
                held[split] |= loaded.held
    order = [key for split in tasks for name in tasks[split] if (key := f"{name}/{split}") in dropped]
    return tasks, {key: dropped[key] for key in order}, held["dev"] | held["test"]


def judged_pairs(settings: FilesSettings, pack: int) -> tuple[pd.DataFrame, dict[str, pd.Series], dict[str, Dropped]]:
    """(judged pairs of all training sets, the passages of each, what was left out of each).

    Raises DataError for a set whose right pairs are fewer than a pack.
    """
    parts, passages, dropped = [], {}, {}
    for name, training in settings.train.items():
        judged = examples.judged(name, training, files_rng(settings, f"train {name}"))
        enough.check_pack(f"data.files.train.{name}", int(judged.pairs["label"].sum()), pack)
        parts.append(judged.pairs)
        passages[name], dropped[f"train/{name}"] = judged.passages, judged.dropped
    return pd.concat(parts, ignore_index=True), passages, dropped


def left_pairs(judged: pd.DataFrame, held: leaks.Held, pack: int) -> pd.DataFrame:
    """The judged pairs that no evaluation set holds. Raises DataError for a set whose right pairs are then
    fewer than a pack.
    """
    left = examples.without(judged, held)
    for name, part in judged.groupby("dataset", sort=False):
        right = int(left.loc[left["dataset"] == name, "label"].sum())
        enough.check_pack(f"data.files.train.{name}", right, pack, int(part["label"].sum()) - right)
    return left


def run_texts(config: Config) -> None:
    """Stage `texts`: the unlabelled text alone, which is all that the base models wait for.

    From files it takes every text of the training sets once, without a following text: no order is known.
    """
    if config.data.source == "files":
        files = local_files(config)
        pairs, passages, _ = judged_pairs(files, config.training.pack)
        pairs = left_pairs(pairs, files_tasks(files)[2], config.training.pack)
        texts = (
            pd.concat([pairs["query"], pairs["passage"], *passages.values()]).drop_duplicates().reset_index(drop=True)
        )
        unlabelled = pd.DataFrame({"text": texts, "next_text": ""})
    else:
        settings = config.data.world
        unlabelled = world.pretraining(_rng(settings, "pretraining"), settings.pretraining_texts)
    write_frame(Paths.of(config).pretraining, unlabelled)


def files_rng(settings: FilesSettings, purpose: str) -> np.random.Generator:
    """The random generator of one set, independent of the others' sizes."""
    return np.random.default_rng([settings.seed, *purpose.encode()])


def _rng(settings: WorldSettings, purpose: str) -> np.random.Generator:
    """The random generator of one purpose, so that changing one size leaves the other texts as they were.

    Test sets have another seed: new ones need no new training data.
    """
    seed = settings.test_seed if purpose.startswith("test ") else settings.seed
    return np.random.default_rng([seed, *purpose.encode()])


def training_pairs(settings: WorldSettings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(training queries with one positive each, pool of texts negatives are drawn from).

    `marked` lists every text the labels mark as right for the query: none of them may become a negative.
    """
    sets = [*_make_pair_sets(settings), *_make_retrieval_sets(settings)]
    train = pd.concat([rows for rows, _ in sets], ignore_index=True)
    train = train.drop_duplicates(["dataset", "query", "positive"]).reset_index(drop=True)
    train.insert(0, "qid", [f"{dataset}-{i}" for i, dataset in enumerate(train["dataset"])])
    return train, pd.concat([pool for _, pool in sets], ignore_index=True)


def _make_pair_sets(settings: WorldSettings) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """(training rows, pool) of every symmetric training set."""
    nli = world.nli(_rng(settings, "train nli"), "train", settings.nli_premises, 4, surface.COMMON)
    yield _select_positives("nli", nli, nli["label"])
    graded = world.sts_graded(_rng(settings, "train sts_graded"), "train", settings.sts_pairs, PARTNERS)
    # Used in the direction in which it holds: the pair is a positive of the symmetric prompt only if the first entails
    # the second.
    yield _select_positives("sts_graded", graded, graded["label"] & (graded["score"] >= STS_POSITIVE))
    for name, make in (("question_match", world.question_match), ("role_swap", world.role_swap)):
        pairs = make(_rng(settings, f"train {name}"), "train", settings.sts_pairs, PARTNERS)
        yield _select_positives(name, pairs, pairs["label"])


def _select_positives(dataset: str, pairs: pd.DataFrame, positive: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(training rows of the pairs that are `positive`, pool of the second texts of all pairs)."""
    positives = pairs[positive]
    marked = positives.groupby("query")["passage"].agg(list)
    rows = pd.DataFrame(
        {
            "query": positives["query"],
            "positive": positives["passage"],
            "dataset": dataset,
            "mode": "symmetric",
            "marked": positives["query"].map(marked),
        }
    )
    return rows, pd.DataFrame({"dataset": dataset, "text": pairs["passage"].drop_duplicates()})


def _make_retrieval_sets(settings: WorldSettings) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """(training rows, pool) of every retrieval training set; the first relevant passage is the positive."""
    for shape in SHAPES:
        generated = world.retrieval(_rng(settings, f"train {shape}"), "train", shape, settings.queries)
        queries, corpus = generated["queries"].set_index("id")["text"], generated["corpus"].set_index("id")["text"]
        qrels = generated["qrels"].assign(text=generated["qrels"]["doc_id"].map(corpus))
        marked = qrels.groupby("query_id", sort=False)["text"].agg(list)
        rows = pd.DataFrame(
            {
                "query": marked.index.map(queries),
                "positive": marked.str[0].to_numpy(),
                "dataset": f"ir_{shape}",
                "mode": "asymmetric",
                "marked": marked.to_numpy(),
            }
        )
        yield rows, pd.DataFrame({"dataset": f"ir_{shape}", "text": corpus})


def evaluation_tasks(settings: WorldSettings, split: str) -> dict[str, dict[str, pd.DataFrame]]:
    """Every task's frames of a split: {"pairs": …} or {"queries", "corpus", "qrels"}."""
    pairs = settings.dev_pairs if split == "dev" else settings.test_pairs
    queries = settings.dev_queries if split == "dev" else settings.test_queries
    out: dict[str, dict[str, pd.DataFrame]] = {}
    for name, templates in (("nli_indomain", surface.COMMON), ("nli_shifted", surface.SHIFTED)):
        frame = world.nli(_rng(settings, f"{split} {name}"), split, pairs // 2, 3, templates).head(pairs)
        out[name] = {"pairs": _number_pairs(name, split, frame).assign(label=frame["label"].astype(int).to_numpy())}
    for name in ("sts_graded", "question_match", "role_swap"):
        frame = getattr(world, name)(_rng(settings, f"{split} {name}"), split, int(pairs * 1.3)).head(pairs)
        out[name] = {"pairs": _number_pairs(name, split, frame).assign(score=frame["score"].astype(float).to_numpy())}
    for shape in SHAPES:
        generated = world.retrieval(_rng(settings, f"{split} {shape}"), split, shape, queries)
        out[f"ir_{shape}"] = {
            "queries": generated["queries"],
            "corpus": generated["corpus"],
            "qrels": generated["qrels"],
        }
    return out


def _number_pairs(name: str, split: str, frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [f"{name}-{split}-{i}" for i in range(len(frame))],
            "query": frame["query"].to_numpy(),
            "passage": frame["passage"].to_numpy(),
            "phenomenon": frame["phenomenon"].astype(str).to_numpy(),
        }
    )


def teacher_groups(settings: WorldSettings, split: str) -> pd.DataFrame:
    """Graded groups the teacher is tuned on (train compositions) or checked on (dev compositions)."""
    symmetric, asymmetric = (
        (settings.teacher_symmetric, settings.teacher_asymmetric)
        if split == "train"
        else (settings.dev_pairs, settings.dev_queries)
    )
    return pd.concat(
        [
            world.teacher_symmetric(_rng(settings, f"{split} teacher symmetric"), split, symmetric, 4),
            world.teacher_asymmetric(_rng(settings, f"{split} teacher asymmetric"), split, asymmetric, 4),
        ],
        ignore_index=True,
    )


def write_tasks(folder: Path, content: Made) -> None:
    """Write the evaluation sets, each in its folder."""
    for name, header in content.headers.items():
        write_json(folder / name / "task.json", header)
        for split, frames in content.tasks.items():
            if name in frames:
                write_task(folder / name, split, frames[name])


def write_task(folder: Path, split: str, frames: dict[str, pd.DataFrame]) -> None:
    """Write one split of a task in the layout of docs/files.md."""
    if "pairs" in frames:
        write_frame(folder / f"{split}.parquet", frames["pairs"])
        return
    for key, frame in frames.items():
        write_frame(folder / split / f"{key}.parquet", frame)
