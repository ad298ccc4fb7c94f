"""The one home of every path below `results/<tier>/`.

Knows names only: it opens nothing, makes no folder, and takes Snakemake's wildcards ("{method}") as well as values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from d2llm.config.schema import Config

# Where an exported model holds its student: the name sentence-transformers gives the folder as well.
STUDENT = "0_Embedder"
# Where `make` leaves one, for examples and messages.
EXAMPLE = "results/mini/runs/d2llm/base/seed1/model"
PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Paths:
    """Where each stage of one tier writes; `root` is `results/<tier>`."""

    root: Path

    @classmethod
    def of(cls, config: Config) -> Paths:
        return cls(Path(config.results) / config.tier)

    # the run as a whole
    @property
    def config(self) -> Path:
        """The resolved config every job reads."""
        return self.root / "config.yaml"

    @property
    def guard(self) -> Path:
        """The file a run locks, so that a second one in the same folder is refused."""
        return self.root / ".running"

    @property
    def cache(self) -> Path:
        """Caches of libraries (mteb's; all where the home cannot be written): never read back as results."""
        return self.root / "cache"

    @property
    def locks(self) -> Path:
        """One empty file a job that ever ran, locked while it runs."""
        return self.root / "locks"

    def state(self, job: str) -> Path:
        """Folder of a job's checkpoints while it trains. No rule's output: what a job failed to finish is to
        survive.
        """
        return self.root / "state" / job

    def logs(self, *parts: str) -> Path:
        """`logs("train", "d2llm", "base", "seed1")` → logs/train/d2llm/base/seed1.log"""
        folder = self.root.joinpath("logs", *parts[:-1])
        return folder / f"{parts[-1]}.log"

    # data
    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def train_pairs(self) -> Path:
        """Training queries with their positives, before negatives are mined."""
        return self.data / "train.parquet"

    @property
    def pool(self) -> Path:
        """The texts negatives are drawn from."""
        return self.data / "pool.parquet"

    @property
    def pretraining(self) -> Path:
        return self.data / "pretraining.parquet"

    @property
    def teacher_train(self) -> Path:
        return self.data / "teacher_train.parquet"

    @property
    def teacher_dev(self) -> Path:
        return self.data / "teacher_dev.parquet"

    @property
    def card_json(self) -> Path:
        return self.data / "card.json"

    @property
    def card_md(self) -> Path:
        return self.data / "card.md"

    @property
    def leaks(self) -> Path:
        return self.data / "leaks.json"

    @property
    def tasks(self) -> Path:
        """The folder holding one folder an evaluation set."""
        return self.data / "tasks"

    def task(self, name: str) -> Path:
        return self.tasks / name

    # what comes from a hub
    @property
    def downloads(self) -> Path:
        """One folder a data set."""
        return self.root / "downloads"

    def download(self, name: str) -> Path:
        return self.downloads / name

    # models made or fetched before any method is trained
    def base(self, model: str) -> Path:
        """Folder of a base model: `teacher`, `decoder`, `encoder` or another of the config."""
        return self.root / "models" / model

    def published(self, row: str) -> Path:
        """Folder of a published model that is a reference row."""
        return self.root / "models" / "published" / row

    def pretext(self, method: str, variant: str) -> Path:
        """Folder of a base model after a method's own pre-training: the model, log.jsonl, summary.json."""
        return self.root / "models" / "pretext" / method / variant

    # training pairs
    @property
    def pairs(self) -> Path:
        """Training queries with positives and hard negatives, in packs."""
        return self.root / "pairs" / "pairs.parquet"

    @property
    def negatives_report(self) -> Path:
        return self.root / "pairs" / "report.json"

    def vectors(self, shard: int | str, shards: int | str) -> Path:
        """A share of the texts' vectors, where they are made by jobs of their own."""
        return self.root / "pairs" / "vectors" / f"{shard}-of-{shards}.safetensors"

    # teacher
    def teacher(self, name: str = "teacher") -> Path:
        """Folder of a teacher: model/, log.jsonl, report.json, scores/."""
        return self.root / name

    @property
    def teacher_model(self) -> Path:
        """The main teacher's."""
        return self.teacher() / "model"

    @property
    def teacher_report(self) -> Path:
        return self.teacher() / "report.json"

    def teacher_missing(self, name: str = "teacher") -> Path:
        """The training pairs that a teacher's file of scores lacks."""
        return self.teacher(name) / "missing.jsonl"

    def teacher_scores(self, shard: int | str, shards: int | str, teacher: str = "teacher") -> Path:
        return self.teacher(teacher) / "scores" / f"{shard}-of-{shards}.parquet"

    # runs
    def run(self, method: str, variant: str, seed: int | str) -> Path:
        """Folder of a training: model/, log.jsonl, summary.json."""
        return self.root / "runs" / method / variant / f"seed{seed}"

    def evaluation(self, method: str, variant: str, seed: int | str) -> Path:
        """Folder of an evaluation: scores.parquet, predictions.parquet."""
        return self.root / "evaluations" / method / variant / f"seed{seed}"

    def evaluation_shard(self, method: str, variant: str, seed: int | str, shard: int | str, shards: int | str) -> Path:
        """Folder of a share of an evaluation's tasks: what an evaluation has, of these."""
        return self.root / "evaluations" / "shards" / method / variant / f"seed{seed}" / f"{shard}-of-{shards}"

    def tracked(self, folder: Path) -> Path:
        """Where the trackers of the training that makes a folder of the results keep what they are told."""
        return self.root / "trackers" / folder.relative_to(self.root)

    # what is searched
    def corpus_shard(self, shard: int | str, shards: int | str) -> Path:
        """Folder of the index of a part of the corpus, with its texts."""
        return self.root / "corpus" / "shards" / f"{shard}-of-{shards}"

    @property
    def corpus(self) -> Path:
        """Folder of the index of the whole corpus, with its texts."""
        return self.root / "corpus" / "index"

    # tuning
    def development(self, method: str, variant: str, seed: int | str) -> Path:
        """Folder of an evaluation on the development splits: scores.parquet."""
        return self.root / "development" / method / variant / f"seed{seed}"

    @property
    def trials(self) -> Path:
        """Every trial with its development scores."""
        return self.root / "tuning" / "trials.csv"

    @property
    def trials_md(self) -> Path:
        return self.trials.with_suffix(".md")

    @property
    def chosen(self) -> Path:
        """The best settings of every method, as a config file to lay over the tier's."""
        return self.trials.with_name("chosen.yaml")

    # collected
    @property
    def scores(self) -> Path:
        return self.root / "scores.parquet"

    @property
    def scores_csv(self) -> Path:
        return self.root / "scores.csv"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions.parquet"

    @property
    def trainings(self) -> Path:
        """What every training was and took, a line each."""
        return self.root / "runs.csv"

    @property
    def curves(self) -> Path:
        """Losses and development scores of every training by step."""
        return self.root / "curves.parquet"

    @property
    def about(self) -> Path:
        """What is behind the scores: data card, reports, the records of the jobs that led to them."""
        return self.root / "about.json"

    @property
    def comparisons(self) -> Path:
        """D2LLM against every baseline, with intervals and corrected p-values."""
        return self.root / "comparisons.csv"

    @property
    def verdicts(self) -> Path:
        """Every pair of methods on every kind of task: better, worse, equivalent, undecided."""
        return self.root / "verdicts.csv"

    @property
    def standings(self) -> Path:
        """Every method on every kind of task: its ranks, whether it is tied for first, means over runs."""
        return self.root / "standings.csv"

    @property
    def runtime(self) -> Path:
        """Times of embedding, scoring and searching."""
        return self.root / "runtime.csv"

    @property
    def contrasts(self) -> Path:
        """Rows of the run against each other, as `statistics.contrasts` names them."""
        return self.root / "contrasts.csv"

    @property
    def ablations(self) -> Path:
        """D2LLM as configured against each of its variants, like `comparisons`."""
        return self.root / "ablations.csv"

    @property
    def examples(self) -> Path:
        """The examples on which methods disagree most, with their texts."""
        return self.root / "examples.json"

    def figure(self, name: str, ext: str) -> Path:
        return self.root / "figures" / f"{name}.{ext}"

    def table(self, name: str, ext: str) -> Path:
        return self.root / "tables" / f"{name}.{ext}"

    @property
    def report(self) -> Path:
        """The whole run on one page."""
        return self.root / "report.html"

    @property
    def notebook(self) -> Path:
        """The executed copy of notebooks/results.ipynb."""
        return self.root / "results.ipynb"

    @property
    def search_notebook(self) -> Path:
        """The executed copy of notebooks/search.ipynb."""
        return self.root / "search.ipynb"


def provenance_of(path: Path) -> Path:
    """The provenance of a single file that has no folder of its own: `<file>.provenance.json`."""
    return path.with_name(f"{path.name}.{PROVENANCE}")
