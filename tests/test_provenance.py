"""A code digest follows what code does and who imports it, not how it is written; a record vouches for its files."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.run import jobs
from d2llm.run.artifacts import read_json, write_json
from d2llm.run.code import closure, code_digest, import_statements, imports, module_digest, parsed, source
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths, provenance_of
from d2llm.run.provenance import altered, checked_inputs, commit, content_digest, damaged, output_digests, sealed
from d2llm.run.stages import STAGES

ROOT = Path(__file__).parent.parent
MINI = ROOT / "config" / "mini.yaml"

LOSSES = "d2llm/methods/losses.py"
FILES = {
    "d2llm/__init__.py": "",
    "d2llm/methods/base.py": "import importlib\n",
    LOSSES: "def loss(x):\n    return x\n",
    "d2llm/unused.py": "x = 1\n",
    "d2llm/config/schema.py": "x = 1\n",
    "d2llm/run/artifacts.py": "x = 1\n",
    "d2llm/methods/d2llm/objective.py": "from d2llm.methods import losses\n",
    "d2llm/models/__init__.py": "",
    "d2llm/models/text.py": "from . import student\n",
    "d2llm/models/student.py": "def f():\n    from d2llm.methods.losses import loss\n    return loss\n",
    "d2llm/training/train.py": (
        "import d2llm.methods.base\nfrom d2llm.config import schema\nfrom d2llm.models.text import x\n"
    ),
    "baselines/__init__.py": "",
    "baselines/bge.py": "import d2llm.methods.base\n",
    "baselines/sgpt.py": "import d2llm.methods.base\n",
    "baselines/udever.py": "from baselines import sgpt\nfrom d2llm.run import artifacts\n",
}
BASELINES = ("bge", "sgpt", "udever")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def digests(project: Path) -> dict[str, str]:
    """The code digest of each baseline's training."""
    for cached in (source, parsed, import_statements, imports, module_digest):
        cached.cache_clear()
    return {name: code_digest(["d2llm.training.train", f"baselines.{name}"], project) for name in BASELINES}


def test_a_closure_follows_all_imports_but_what_carries_and_other_methods(project: Path) -> None:
    library = {f"d2llm.{name}" for name in ("training.train", "methods.base", "methods.losses", "models.text")}
    library |= {"d2llm.models", "d2llm.models.student"}
    assert closure(["d2llm.training.train", "baselines.bge"], project) == library | {"baselines.bge"}
    assert closure(["baselines.udever"], project) == {"baselines.udever", "baselines.sgpt", "d2llm.methods.base"}
    assert "d2llm.methods.losses" in closure(["d2llm.methods.d2llm.objective"], project)


@pytest.mark.parametrize(
    "place",
    [
        "class A:\n  async def f(self):\n    {}",
        "if a:\n  x\nelse:\n  with b:\n    {}",
        "try:\n  x\nexcept E:\n  {}",
        "try:\n  x\nfinally:\n  {}",
        "match x:\n  case 1:\n    {}",
    ],
)
def test_an_import_counts_wherever_it_stands(project: Path, place: str) -> None:
    (project / LOSSES).write_text(place.format("import d2llm.unused"))
    assert digests(project) and "d2llm.unused" in closure(["d2llm.training.train"], project)


@pytest.mark.parametrize(
    ("file", "text", "stale"),
    [
        (LOSSES, "# why\ndef loss(x):\n\n    'doc'\n    return (x)  # x\n", ()),
        (LOSSES, "def loss(x):\n    return 'doc'\n", BASELINES),  # a value, not a docstring
        (LOSSES, "if TYPE_CHECKING:\n    import d2llm.unused\ndef loss(x):\n    return x\n", ()),
        (LOSSES, "if SOMETHING:\n    import d2llm.unused\ndef loss(x):\n    return x\n", BASELINES),
        ("d2llm/models/student.py", "x = 2\n", BASELINES),  # by way of a relative import
        ("baselines/bge.py", "import d2llm.methods.base\nx = 2\n", ("bge",)),
        ("baselines/sgpt.py", "import d2llm.methods.base\nx = 2\n", ("sgpt", "udever")),
        ("d2llm/methods/d2llm/objective.py", "x = 2\n", ()),
        ("d2llm/unused.py", "x = 2\n", ()),
        ("d2llm/config/schema.py", "x = 2\n", ()),
        ("d2llm/run/artifacts.py", "x = 2\n", ()),
    ],
)
def test_an_edit_makes_stale_exactly_what_uses_it(project: Path, file: str, text: str, stale: tuple[str, ...]) -> None:
    before = digests(project)
    (project / file).write_text(text)
    after = digests(project)
    assert tuple(name for name in BASELINES if before[name] != after[name]) == stale


def test_content_digest_of_a_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    file = tmp_path / "m" / "a"
    file.write_bytes(b"abc")
    before = content_digest(tmp_path / "m")
    (tmp_path / "m" / "provenance.json").write_text("{}")
    assert content_digest(file) == hashlib.sha256(b"abc").hexdigest() and content_digest(tmp_path / "m") == before
    file.rename(tmp_path / "m" / "b")
    assert content_digest(tmp_path / "m") != before


# --------------------------------------------------------------------------------------------------------------- stages
ARGUMENTS = {"model": "decoder", "teacher": "teacher", "shard": 0, "shards": 1}
ARGUMENTS |= {"method": "bge", "variant": "base", "seed": 1}


def arguments(stage: str) -> dict[str, object]:
    """Arguments of one job of a stage."""
    names = {"table": "nli", "figure": "main"}
    return {key: ARGUMENTS.get(key, names.get(stage, "x")) for key in STAGES[stage].arguments}


# What a stage's modules read of the config that its settings do not name.
ELSEWHERE = {
    # `base_settings` has the model's, `precision` says it where it is not the usual one; trackers decide no result.
    "base": {"models.of", "training.trackers"},
    "corpus_shard": {"data"},  # whose module has the type of quotation marks
    "corpus": {"data"},
    "teacher": {"training.precision", "training.trackers"},
    "pretext": {"training.precision", "training.trackers"},
    "download": {"data.files"},  # the one set it is
    # On which conditions the data is accepted; what is written does not depend on them.
    "texts": {"training.pack", "negatives.per_query"},
    "data": {"training.pack", "negatives.per_query"},
}


def test_stages_declare_the_settings_their_modules_read() -> None:
    config = load([MINI])
    sections = "|".join(
        name for name, field in Config.model_fields.items() if hasattr(field.annotation, "model_fields")
    )
    for name, stage in STAGES.items():
        declared = {key.replace("{model}", "") for key in stage.settings} | ELSEWHERE.get(name, set())
        if name not in ("download", "published"):  # of which this tier has none
            declared |= set(jobs.settings(config, name, **arguments(name)))
        for module in jobs.modules(config, name, **arguments(name)):
            text = (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
            for key in re.findall(rf"\bconfig\.((?:{sections})\b(?:\.\w+)*)", text):
                known = any(f"{key}.".startswith(f"{part.rstrip('.')}.") for part in declared)
                known |= any(part.startswith(f"{key}.") for part in declared)
                assert known, f"stage {name}: {module} reads config.{key}; declare it in d2llm/run/stages.py"


def test_a_job_is_current_until_its_settings_or_its_inputs_change(tmp_path: Path) -> None:
    config = load([MINI], {"results": str(tmp_path)})
    given = tmp_path / "input"
    given.write_text("x")
    assert not jobs.current(config, "negatives")
    record = {"settings": jobs.settings(config, "negatives"), "inputs": {str(given): "0"}}
    write_json(STAGES["negatives"].record(Paths.of(config)), record)
    assert jobs.current(config, "negatives")
    assert not jobs.current(load([MINI], {"results": str(tmp_path), "negatives": {"seed": 9}}), "negatives")
    given.unlink()
    assert not jobs.current(config, "negatives")


def test_every_stages_record_speaks_for_its_files() -> None:
    paths = Paths(Path("r"))
    for name, stage in STAGES.items():
        record = stage.record(paths, **arguments(name))
        assert all(path.is_relative_to(record.parent) for path in jobs.outputs(name, paths, **arguments(name))), name
    assert len(jobs.outputs("table", paths, name="nli")) == 4


# -------------------------------------------------------------------------------------------------------------- outputs
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a record, and in it a file that another job wrote, with a record of its own."""
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_bytes(b"weights")
    (folder / "summary.json").write_text("{}")
    other = folder / "scores.parquet"
    other.write_bytes(b"scores")
    write_json(provenance_of(other), {"outputs": output_digests(provenance_of(other), [other])})
    record = folder / "provenance.json"
    write_json(record, {"outputs": output_digests(record, [folder])})
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_one_flipped_bit_of_an_input_is_told_with_the_input_to_remove(folder: Path) -> None:
    assert set(read_json(folder / "provenance.json")["outputs"]) == {"model/weights", "summary.json"}
    assert checked_inputs([str(folder / "model")]) == {str(folder / "model"): content_digest(folder / "model")}
    assert not damaged(folder)
    flip(folder / "model" / "weights")
    message = rf"model/weights: damaged, or changed since its job wrote it .*; remove {folder}/model and run `snakemake"
    with pytest.raises(ArtifactError, match=message):
        checked_inputs([str(folder / "summary.json"), str(folder / "model")])
    flip(folder / "scores.parquet")
    with pytest.raises(ArtifactError, match=r"scores\.parquet: damaged"):
        checked_inputs([str(folder / "scores.parquet")])
    (folder / "summary.json").unlink()
    assert damaged(folder) == ["model/weights (changed)", "summary.json (gone)", "scores.parquet (changed)"]


def test_with_a_record_what_lies_beside_it_is_checked(folder: Path) -> None:
    """As a training's log, which is no output of its rule and is read beside its record."""
    record = folder / "provenance.json"
    checked_inputs([str(record)])
    flip(folder / "model" / "weights")  # not beside it
    checked_inputs([str(record)])
    flip(folder / "summary.json")
    with pytest.raises(ArtifactError, match=rf"summary\.json: damaged.*; remove {record} and run"):
        checked_inputs([str(record)])


def test_a_record_vouches_for_itself(folder: Path) -> None:
    """A number changed in it is told, by the jobs that read what lies beside it and by `verify`.

    Keys that JSON turns into text change nothing.
    """
    record = folder / "provenance.json"
    content = read_json(record)
    write_json(record, sealed(content | {"seconds": 1.25, "settings": {2: "b", 10: ("a", None)}}))
    checked_inputs([str(record), str(folder / "summary.json")])
    assert not damaged(folder) and not altered(content)  # an earlier version's has no seal
    record.write_text(record.read_text().replace("1.25", "1.35"))
    refused(folder)
    assert damaged(folder) == ["provenance.json (changed)"]


def refused(folder: Path) -> None:
    """Whatever the folder's record speaks for is; what another job wrote into it is not."""
    record = folder / "provenance.json"
    for name in (record, folder / "summary.json", folder / "model"):
        with pytest.raises(ArtifactError, match=rf"{record}: damaged, or changed .*; remove {folder} and run `snake"):
            checked_inputs([str(name)])
    checked_inputs([str(folder / "scores.parquet")])


def test_half_a_record_is_told_by_whoever_reads_what_it_speaks_for(folder: Path) -> None:
    record, scores = folder / "provenance.json", folder / "scores.parquet"
    record.write_text(record.read_text()[:40])
    refused(folder)
    provenance_of(scores).write_text("[]")
    with pytest.raises(
        ArtifactError, match=rf"{provenance_of(scores)}: damaged, .*; remove {provenance_of(scores)} an"
    ):
        checked_inputs([str(scores)])


@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git itself")
def test_the_commit_is_git_s_own(tmp_path: Path) -> None:
    """On a branch, packed, in a second working tree, away from branches; and none where there is no repository."""

    def git(line: str, folder: Path = tmp_path) -> str:
        command = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *line.split()]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert commit(tmp_path) is None
    git("init --quiet")
    assert commit(tmp_path) is None
    for message in ("one", "two"):
        git(f"commit --quiet --allow-empty -m {message}")
    assert commit(tmp_path) == git("rev-parse HEAD")
    git("pack-refs --all")
    assert commit(tmp_path) == git("rev-parse HEAD")
    git("worktree add --quiet -b side side HEAD~1")
    for change in ("status", "checkout --quiet --detach HEAD"):
        git(change, tmp_path / "side")
        assert commit(tmp_path / "side") == git("rev-parse HEAD~1")
