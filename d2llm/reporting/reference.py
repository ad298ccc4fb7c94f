"""Keeps the small files of a finished run as its committed reference: scores, tables, figures, cards, provenance; no
weights, and of a run on files no texts (`withheld`).

Copies only, and each thing once: figures as SVG, and no summaries of single trainings, which `runs.csv` and
`curves.parquet` hold. What is copied is what a reader needs to check a number and a later run is compared with.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from d2llm.reporting import withheld
from d2llm.run.artifacts import atomic, read_json, require, write_json, write_text
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.paths import PROVENANCE, Paths, provenance_of
from d2llm.run.provenance import SEAL, records

if TYPE_CHECKING:
    from d2llm.config.schema import Config


def keep(config: Config, folder: Path, texts: bool = False) -> list[Path]:
    """Copy a run's small files to `folder` (replaced whole) and return what was written.

    All provenance records go into one file, keyed by the path of the record. Texts of files stay away, unless `texts`.
    Raises ArtifactError when the run is not finished, or a file would hold such a text.
    """
    if folder.exists() and not (folder / "scores.csv").is_file():
        raise ConfigError(
            f"--to {folder}: exists and holds no run's files; it would be replaced whole: choose another folder"
        )
    paths = Paths.of(config)
    require(paths.scores)
    files = small_files(config, paths)
    withhold = config.data.source == "files" and not texts
    instead = withheld.rewritten(paths) if withhold else {}
    with atomic(folder) as place:
        for source in files:
            target = place / source.relative_to(paths.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source not in instead:
                shutil.copyfile(source, target)
            elif (content := instead[source]) is not None:
                write_text(target, content)
        # What is kept is small: digests of files that are not are left out, and the record's own with them.
        small = {
            name: {k: v for k, v in record.items() if k not in ("outputs", SEAL)}
            for name, record in records(paths.root).items()
        }
        write_json(place / PROVENANCE, small)
        if withhold:
            withheld.without_places(place, config)
            withheld.check(place, paths)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def small_files(config: Config, paths: Paths) -> list[Path]:
    """What is copied. Raises ArtifactError for a file that a finished run has and this one lacks."""
    tables = sorted(path for ext in ("csv", "md", "tex") for path in paths.root.glob(f"tables/*.{ext}"))
    # As the page shows them; a PNG of each would say the same again.
    figures = sorted(paths.root.glob("figures/*.svg"))
    single = [
        paths.scores_csv,
        paths.comparisons,
        paths.ablations,
        paths.contrasts,
        paths.trainings,
        paths.curves,
        paths.examples,
        paths.runtime,
        paths.card_md,
        paths.card_json,
        paths.leaks,
        paths.negatives_report,
        paths.teacher_report,
        paths.config,
    ]
    single += [path for path in (paths.verdicts, paths.standings) if path.exists()]
    teachers = sorted(paths.root.glob("teacher-*/report.json"))
    tuned = tuning_record(config, paths)
    # As executed: pages one can read without running anything.
    books = [book for book in (paths.notebook, paths.search_notebook) if book.exists()]
    return [*tables, *figures, *map(require, single), *teachers, *tuned, *books]


def tuning_record(config: Config, paths: Paths) -> list[Path]:
    """The files of `snakemake tune`, if it was run. Raises ArtifactError if it was run with other grids than the
    config's.
    """
    if not paths.trials.exists():
        return []
    grids = read_json(provenance_of(paths.trials))["settings"]["tuning"]
    if grids != config.tuning.model_dump(mode="json"):
        raise ArtifactError(
            f"{paths.trials}: of other grids than the config's; remove the folder or run `snakemake tune` again"
        )
    return [paths.trials, paths.trials_md, paths.chosen]
