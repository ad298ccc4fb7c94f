"""How much text a run has: of each training set and each evaluation set how many texts, and how long they are.

From what the data stage makes or has made; before that from mteb's own statistics of its sets, from `sample`, else
assumed, and said. Lengths are counted in the tokens that `tokens_of` takes a text for; what a model's tokenizer makes
of them is in `sizes`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.config.data import MtebSet
from d2llm.config.recipes import Mode, tokens_of
from d2llm.run.jobs import current
from d2llm.run.paths import Paths
from d2llm.run.schemas import TASK_PAIRS

if TYPE_CHECKING:
    import pandas as pd

    from d2llm.config.data import TaskSet, TrainingSet, WorldSettings
    from d2llm.config.schema import Config
    from d2llm.data.build import Made

# Tokens taken for a text of a symmetric set, a question and a passage, as long as none can be counted.
SENTENCE, QUESTION, PASSAGE = 20.0, 15.0, 120.0
# Texts of a set whose lengths are counted, and whose tokens tell of a tokenizer.
SAMPLE = 200


@dataclass(frozen=True)
class Texts:
    """A pile of texts: how many, and the shares of them by their tokens."""

    count: int
    shares: Mapping[float, float]

    def mean(self, ratio: float = 1.0, limit: float = float("inf")) -> float:
        """Mean tokens of a text that is cut at a limit."""
        return sum(min(ratio * length, limit) * share for length, share in self.shares.items())

    def tokens(self, ratio: float = 1.0, limit: float = float("inf")) -> float:
        """Tokens of all of them."""
        return self.count * self.mean(ratio, limit)


@dataclass(frozen=True)
class Training:
    """A training set: its queries, and the passages that positives and negatives come from."""

    name: str
    mode: Mode
    queries: Texts
    passages: Texts


@dataclass(frozen=True)
class Evaluated:
    """A split of an evaluation set: the two texts of its pairs, or queries and corpus."""

    type: str
    queries: Texts
    passages: Texts

    @property
    def mode(self) -> Mode:
        """The mode its texts are read in."""
        return "asymmetric" if self.type == "retrieval" else "symmetric"


@dataclass(frozen=True)
class Amounts:
    """All of a run. `longest`: tokens of the longest unlabelled text, infinite where not known; `examples`: some texts."""

    train: tuple[Training, ...]
    test: tuple[Evaluated, ...]
    dev: tuple[Evaluated, ...]
    unlabelled: Texts
    longest: float
    assumed: tuple[str, ...] = ()
    examples: tuple[str, ...] = field(default=(), repr=False)

    @property
    def queries(self) -> int:
        """Training queries."""
        return sum(part.queries.count for part in self.train)

    def split(self, name: str) -> tuple[Evaluated, ...]:
        """The evaluation sets of "test" or "dev"."""
        return self.test if name == "test" else self.dev


def count_texts(config: Config, usual: int, data: Made | None = None, whole: bool = True) -> Amounts:
    """From what the data stage makes where that is given; from its files where it has run by these settings; from one's
    own where they are there and `whole` asks to read them; else `usual` queries a training set without a sample.

    Raises DataError for a file that is wrong.
    """
    if data is None and current(config, "data"):
        return _measured(Paths.of(config))
    own = config.data.source == "files" and not config.data.files.downloads()
    if data is None and whole and own and all(map(os.path.isfile, config.data.files.paths().values())):
        from d2llm.data import build

        data = build.from_files(config)
    if data is not None:
        return _counted(data.train, data.pool, {split: list(sets.values()) for split, sets in data.tasks.items()})
    return _generated(config.data.world) if config.data.source == "world" else _assumed(config, usual)


# ------------------------------------------------------------------------------------------------------ texts there are
def _measured(paths: Paths) -> Amounts:
    """From what the data stage wrote, and the stage `texts` where it has run as well."""
    import pandas as pd

    columns = {"queries": ["text"], "corpus": ["text"]}
    tasks: dict[str, list[dict[str, pd.DataFrame]]] = {"dev": [], "test": []}
    for folder in sorted(path.parent for path in paths.tasks.glob("*/task.json")):
        for split, sets in tasks.items():
            if (folder / f"{split}.parquet").exists():
                sets.append({"pairs": pd.read_parquet(folder / f"{split}.parquet")})
            elif (folder / split).is_dir():
                sets.append(
                    {k: pd.read_parquet(folder / split / f"{k}.parquet", columns=v) for k, v in columns.items()}
                )
    plain = pd.read_parquet(paths.pretraining, columns=["text"])["text"] if paths.pretraining.exists() else None
    train = pd.read_parquet(paths.train_pairs, columns=["dataset", "mode", "query", "positive"])
    return _counted(train, pd.read_parquet(paths.pool), tasks, plain)


def _counted(
    train: pd.DataFrame,
    pool: pd.DataFrame,
    tasks: Mapping[str, Sequence[Mapping[str, pd.DataFrame]]],
    plain: pd.Series | None = None,
) -> Amounts:
    """Of training pairs, pool, sets by split ("pairs", or "queries" and "corpus") and unlabelled texts; without these,
    what training shows.
    """
    import pandas as pd

    sets = []
    for name, part in train.groupby("dataset", sort=False):
        passages = pool["text"][pool["dataset"] == name]
        sets.append(Training(str(name), part["mode"].iloc[0], _texts(part["query"]), _texts(passages)))
    plain = pd.concat([train["query"], pool["text"]]).drop_duplicates() if plain is None else plain
    return Amounts(
        train=tuple(sets),
        test=tuple(map(_evaluated, tasks.get("test", ()))),
        dev=tuple(map(_evaluated, tasks.get("dev", ()))),
        unlabelled=_texts(plain),
        longest=tokens_of(plain.iloc[int(plain.str.len().argmax())]),
        examples=tuple(_sample(plain)),
    )


def _evaluated(frames: Mapping[str, pd.DataFrame]) -> Evaluated:
    if "pairs" in frames:
        pairs = frames["pairs"]
        first, second = (pairs[name] for name in TASK_PAIRS if name != "id")
        return Evaluated("pair_classification" if "label" in pairs else "sts", _texts(first), _texts(second))
    return Evaluated("retrieval", _texts(frames["queries"]["text"]), _texts(frames["corpus"]["text"]))


def _sample(texts: pd.Series) -> pd.Series:
    """Some, the same each time."""
    return texts.sample(min(len(texts), SAMPLE), random_state=0)


def _texts(texts: pd.Series) -> Texts:
    return Texts(len(texts), _sample(texts).map(tokens_of).value_counts(normalize=True).to_dict())


# ----------------------------------------------------------------------------------------------- texts there are not
# yet
def _alike(count: float, tokens: float) -> Texts:
    return Texts(round(count), {float(tokens): 1.0})


def _generated(settings: WorldSettings) -> Amounts:
    """What the generated world makes, about."""
    pairs = 1.5 * settings.nli_premises + 1.5 * settings.sts_pairs
    train = (
        Training("pairs", "symmetric", _alike(pairs, 12), _alike(3 * pairs, 12)),
        Training("retrieval", "asymmetric", _alike(3 * settings.queries, 12), _alike(9 * settings.queries, 20)),
    )

    def sets(pairs: int, queries: int) -> tuple[Evaluated, ...]:
        texts = _alike(queries, 12), _alike(2 * queries, 20)
        return (*[Evaluated("sts", _alike(pairs, 12), _alike(pairs, 12))] * 5, *[Evaluated("retrieval", *texts)] * 3)

    test = sets(settings.test_pairs, settings.test_queries)
    dev = sets(settings.dev_pairs, settings.dev_queries)
    unlabelled = _alike(settings.pretraining_texts, 16)
    return Amounts(train, test, dev, unlabelled, float("inf"), ("all numbers of texts",))


def _assumed(config: Config, usual: int) -> Amounts:
    """From samples and from what mteb knows of its sets; else usual sizes, which are said."""
    guesses: list[str] = []
    tasks = {
        split: [
            _known(task, getattr(task, split), guesses if split == "test" else [])
            for task in config.data.files.tasks.values()
            if getattr(task, split) is not None
        ]
        for split in ("test", "dev")
    }
    # Passages to train on are taken to be like those that are evaluated.
    means = [part.passages.mean() for part in tasks["test"] if part.type == "retrieval"]
    passage = sum(means) / len(means) if means else PASSAGE
    train, plain = [], Counter[float]()
    for name, files in config.data.files.train.items():
        part, guessed = _training(name, files, usual, passage)
        guesses += guessed
        train.append(part)
        for texts in (part.queries, part.passages):
            plain.update({length: round(texts.count * share) for length, share in texts.shares.items()})
    lengths = f"{SENTENCE:.0f} tokens a text of symmetric sets, {QUESTION:.0f} a question, {passage:.0f} a passage"
    guesses.append(f"of training {lengths}")
    count = sum(plain.values())
    unlabelled = Texts(count, {length: number / count for length, number in plain.items()})
    return Amounts(tuple(train), tuple(tasks["test"]), tuple(tasks["dev"]), unlabelled, float("inf"), tuple(guesses))


def _training(name: str, files: TrainingSet, usual: int, passage: float) -> tuple[Training, list[str]]:
    """A training set by its sample, and what was assumed of it."""
    asked = files.sample or usual
    read = (files.pool or 0) + 2 * asked
    own = (SENTENCE, SENTENCE) if files.mode == "symmetric" else (QUESTION, passage)
    guessed = [] if files.sample else [f"{usual} queries of {name}"]
    return Training(name, files.mode, _alike(asked, own[0]), _alike(read, own[1])), guessed


def _known(task: MtebSet | TaskSet, split: Any, guesses: list[str]) -> Evaluated:
    """A split by mteb's statistics, or by usual sizes."""
    known = _statistics(task.mteb, task.subset, str(split)) if isinstance(task, MtebSet) else None
    if known is None:
        guesses.append(f"the size of {task.title or task.type}")
        pairs = (_alike(5000, SENTENCE), _alike(5000, SENTENCE))
        known = (_alike(1000, QUESTION), _alike(100_000, PASSAGE)) if task.type == "retrieval" else pairs
    first, second = known
    if task.sample is not None:
        first = Texts(min(first.count, task.sample), first.shares)
        second = second if task.type == "retrieval" else Texts(first.count, second.shares)
    return Evaluated(task.type, first, second)


def _statistics(name: str, subset: str | None, split: str) -> tuple[Texts, Texts] | None:
    """What mteb's package says of its own sets, read without importing it; None where it says nothing."""
    package = importlib.util.find_spec("mteb")
    places = list(package.submodule_search_locations or ()) if package else []
    for file in (file for place in places for file in Path(place).glob(f"descriptive_stats/*/{name}.json")):
        known = json.loads(file.read_text(encoding="utf-8")).get(split, {})
        known = known.get("hf_subset_descriptive_stats", {}).get(subset, known) if subset else known
        if "num_documents" in known:
            return (
                _written(known["num_queries"], known["queries_text_statistics"]),
                _written(known["num_documents"], known["documents_text_statistics"]),
            )
        sides = [known.get(f"text{side}_statistics") for side in (1, 2)]
        if all(sides):
            return _written(known["num_samples"], sides[0]), _written(known["num_samples"], sides[1])
    return None


def _written(count: int, statistics: Mapping[str, float]) -> Texts:
    """Texts by their characters, taken for Chinese."""
    return _alike(count, tokens_of("一") * statistics["average_text_length"])


def longest_of(shares: Mapping[float, float], count: int) -> float:
    """The mean length of the longest of `count` texts drawn from {length: share}."""
    mean, below = 0.0, 0.0
    for length, share in sorted(shares.items()):
        mean += length * ((below + share) ** count - below**count)
        below += share
    return mean
