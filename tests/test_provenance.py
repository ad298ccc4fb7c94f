"""A code digest follows what code does and who imports it, not how it is written down."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.run import jobs, stages
from d2llm.run.artifacts import write_json
from d2llm.run.code import closure, code_digest, imports, module_digest, parsed
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths, provenance_of
from d2llm.run.provenance import altered, checked_inputs, commit, content_digest, damaged, output_digests, sealed

ROOT = Path(__file__).parent.parent

FILES = {
    "d2llm/__init__.py": "",
    "d2llm/methods/base.py": "import importlib\n",
    "d2llm/methods/d2llm/losses.py": "def loss(x):\n    return x\n",
    "d2llm/unused.py": "x = 1\n",
    "d2llm/config/schema.py": "x = 1\n",
    "d2llm/methods/d2llm/method.py": "from d2llm import losses\n",
    "d2llm/models/__init__.py": "",
    "d2llm/models/pooling.py": "from . import student\n",
    "d2llm/models/student.py": "def f():\n    from d2llm.methods.d2llm.losses import loss\n    return loss\n",
    "d2llm/training/train.py": "import d2llm.methods.base\nfrom d2llm import config\nfrom d2llm.models.pooling import x\n",
    "baselines/__init__.py": "",
    "baselines/bge.py": "import d2llm.methods.base\n",
    "baselines/sgpt.py": "import d2llm.methods.base\n",
    "baselines/udever.py": "from baselines import sgpt\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


ARGUMENTS = {
    "model": "decoder",
    "shard": 0,
    "shards": 1,
    "method": "bge",
    "variant": "base",
    "seed": 1,
    "name": "nli",
    "teacher": "teacher",
}


def digest(project: Path, *modules: str) -> str:
    for cached in (parsed, imports, module_digest):
        cached.cache_clear()
    return code_digest(list(modules), project)


def test_closure_follows_all_imports_but_plumbing_and_other_methods(project: Path) -> None:
    library = {
        "d2llm.training.train",
        "d2llm.methods.base",
        "d2llm.models",
        "d2llm.models.pooling",
        "d2llm.models.student",
    }
    assert closure(["d2llm.training.train", "baselines.bge"], project) == library | {
        "d2llm.methods.d2llm.losses",
        "baselines.bge",
    }
    assert closure(["baselines.udever"], project) == {"baselines.udever", "baselines.sgpt", "d2llm.methods.base"}


@pytest.mark.parametrize(
    ("file", "text", "stale"),
    [
        ("d2llm/methods/d2llm/losses.py", "# why\ndef loss(x):\n\n    'doc'\n    return (x)  # x\n", set()),
        ("d2llm/methods/d2llm/losses.py", "def loss(x):\n    return -x\n", {"bge", "sgpt", "udever"}),
        ("baselines/bge.py", "import d2llm.methods.base\nx = 2\n", {"bge"}),
        (
            "d2llm/methods/d2llm/losses.py",
            "if TYPE_CHECKING:\n    import d2llm.unused\ndef loss(x):\n    return x\n",
            set(),
        ),
        (
            "d2llm/methods/d2llm/losses.py",
            "if SOMETHING:\n    import d2llm.unused\ndef loss(x):\n    return x\n",
            {"bge", "sgpt", "udever"},
        ),
        ("baselines/sgpt.py", "import d2llm.methods.base\nx = 2\n", {"sgpt", "udever"}),
        ("d2llm/methods/d2llm/method.py", "x = 2\n", set()),
        ("d2llm/unused.py", "x = 2\n", set()),
        ("d2llm/config/schema.py", "x = 2\n", set()),
        ("d2llm/models/student.py", "x = 2\n", {"bge", "sgpt", "udever"}),
    ],
)
def test_an_edit_makes_stale_exactly_what_uses_it(project: Path, file: str, text: str, stale: set[str]) -> None:
    methods = ("bge", "sgpt", "udever")
    before = {method: digest(project, "d2llm.training.train", f"baselines.{method}") for method in methods}
    (project / file).write_text(text)
    after = {method: digest(project, "d2llm.training.train", f"baselines.{method}") for method in methods}
    assert {method for method in methods if before[method] != after[method]} == stale


def test_a_docstring_is_not_confused_with_a_value(project: Path) -> None:
    before = digest(project, "d2llm.methods.d2llm.losses")
    (project / "d2llm/methods/d2llm/losses.py").write_text('def loss(x):\n    "half"\n    return x\n')
    assert digest(project, "d2llm.methods.d2llm.losses") == before
    (project / "d2llm/methods/d2llm/losses.py").write_text('def loss(x):\n    return "half"\n')
    assert digest(project, "d2llm.methods.d2llm.losses") != before


def test_content_digest_of_a_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    file = tmp_path / "m" / "a"
    file.write_bytes(b"abc")
    assert content_digest(file) == hashlib.sha256(b"abc").hexdigest()
    before = content_digest(tmp_path / "m")
    (tmp_path / "m" / "provenance.json").write_text("{}")
    assert content_digest(tmp_path / "m") == before
    file.rename(tmp_path / "m" / "b")
    assert content_digest(tmp_path / "m") != before


def test_every_stage_has_its_module_and_settings() -> None:
    config = load([ROOT / "config" / "mini.yaml"])
    for name, stage in stages.STAGES.items():
        if name == "download":  # of which this tier has none
            continue
        given = {argument: ARGUMENTS[argument] for argument in stage.arguments}
        for module in jobs.modules(name, **given):
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), f"{name}: {module}"
        jobs.settings_line(config, name, **given)


def config_keys(module: str) -> set[str]:
    """The keys of the config that a module's text reads, as far as `config.a.b` says them."""
    text = (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
    sections = {name for name, field in Config.model_fields.items() if hasattr(field.annotation, "model_fields")}
    found = re.findall(rf"\bconfig\.((?:{'|'.join(sections)})\b(?:\.\w+)*)", text)
    return set(found)


def test_stages_declare_the_settings_their_modules_read() -> None:
    for name, stage in stages.STAGES.items():
        given = {argument: ARGUMENTS.get(argument) for argument in stage.arguments}
        declared = {key.replace("{model}", "") for key in stage.settings}
        # Of the model, or of the teacher, that the job is about (stages.settings).
        declared |= {"models.of"} if name == "base" else set()
        # Where it is not the usual one.
        declared |= {"training.precision"} if name in ("teacher", "pretext") else set()
        # On which conditions the data is accepted, for stages to come that declare them; what is written does not depend on them.
        declared |= {"training.pack", "negatives.per_query"} if name in ("texts", "data") else set()
        # The one set a download is.
        declared |= {"data.files"} if name == "download" else set()
        for module in jobs.modules(name, **given):
            for key in config_keys(module):
                known = any((key + ".").startswith(part.rstrip(".") + ".") for part in declared)
                known = known or any(part.startswith(key + ".") for part in declared)
                assert known, f"stage {name}: {module} reads config.{key}; declare it in d2llm/run/stages.py"


def test_settings_of_a_training_are_its_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("methods: {bge: {temperature: 0.5}}")
    before, after = load([ROOT / "config" / "mini.yaml"]), load([ROOT / "config" / "mini.yaml", mine])
    changed = {
        method
        for method in before.methods
        if jobs.settings(before, "train", method=method, variant="base", seed=1)
        != jobs.settings(after, "train", method=method, variant="base", seed=1)
    }
    assert changed == {"bge"}


# ------------------------------------------------------------------------------------------------------------ outputs
@pytest.fixture
def made(tmp_path: Path) -> Path:
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


def test_a_record_speaks_for_what_its_job_wrote(made: Path) -> None:
    said = json.loads((made / "provenance.json").read_text())["outputs"]
    assert said == {
        "model/weights": hashlib.sha256(b"weights").hexdigest(),
        "summary.json": hashlib.sha256(b"{}").hexdigest(),
    }
    assert checked_inputs([str(made / "model")]) == {str(made / "model"): content_digest(made / "model")}
    assert not damaged(made)


def test_one_flipped_bit_of_an_input_is_told_with_the_input_to_remove(made: Path) -> None:
    flip(made / "model" / "weights")
    told = rf"model/weights: damaged, or changed since its job wrote it .*; remove {made}/model and run `snakemake --cores all` again"
    with pytest.raises(ArtifactError, match=told):
        checked_inputs([str(made / "summary.json"), str(made / "model")])
    flip(made / "scores.parquet")
    with pytest.raises(ArtifactError, match=r"scores\.parquet: damaged"):
        checked_inputs([str(made / "scores.parquet")])
    (made / "summary.json").unlink()
    assert damaged(made) == ["model/weights (changed)", "summary.json (gone)", "scores.parquet (changed)"]


def test_with_a_record_what_lies_beside_it_is_checked(made: Path) -> None:
    """As a training's log, which is no output of its rule and is read beside its record."""
    record = made / "provenance.json"
    checked_inputs([str(record)])
    flip(made / "model" / "weights")  # not beside it
    checked_inputs([str(record)])
    flip(made / "summary.json")
    with pytest.raises(ArtifactError, match=rf"summary\.json: damaged.*; remove {record} and run"):
        checked_inputs([str(record)])


def test_a_record_vouches_for_itself(made: Path) -> None:
    """A number changed in it is told, by the jobs that read what lies beside it and by `verify`; keys that JSON turns into text change nothing."""
    record = made / "provenance.json"
    said = json.loads(record.read_text())
    write_json(record, sealed(said | {"seconds": 1.25, "settings": {2: "b", 10: ("a", None)}}))
    checked_inputs([str(record), str(made / "summary.json")])
    assert not damaged(made) and not altered(said)  # an earlier version's has no seal
    record.write_text(record.read_text().replace("1.25", "1.35"))
    for name in (record, made / "summary.json", made / "model"):
        with pytest.raises(ArtifactError, match=rf"{record}: damaged, or changed .*; remove {made} and run `snakemake --cores all` again"):  # fmt: skip
            checked_inputs([str(name)])
    checked_inputs([str(made / "scores.parquet")])  # another job's
    assert damaged(made) == ["provenance.json (changed)"]


def test_what_no_record_names_is_taken_as_it_is(made: Path) -> None:
    (made / "model" / "notes").write_text("mine")
    checked_inputs([str(made / "model")])
    flip(made / "model" / "weights")
    (made / "provenance.json").write_text('{"stage": "train"}')  # of an earlier version, which named no outputs
    checked_inputs([str(made / "model")])


def test_half_a_record_is_told_by_whoever_reads_what_it_speaks_for(made: Path) -> None:
    record = made / "provenance.json"
    record.write_text(record.read_text()[:40])
    for name in (record, made / "summary.json", made / "model"):
        with pytest.raises(ArtifactError, match=rf"{record}: damaged, or changed .*; remove {made} and run"):
            checked_inputs([str(name)])
    scores = made / "scores.parquet"
    checked_inputs([str(scores)])  # another job's, whose own record is whole
    provenance_of(scores).write_text("[]")
    with pytest.raises(
        ArtifactError, match=rf"{beside(scores)}: damaged, or changed .*; remove {beside(scores)} and run"
    ):
        checked_inputs([str(scores)])


def test_every_stage_s_record_speaks_for_its_files() -> None:
    paths = Paths(Path("r"))
    for name, stage in stages.STAGES.items():
        given = {argument: ARGUMENTS.get(argument, "x") for argument in stage.arguments}
        record = stage.provenance(paths, **given)
        for path in jobs.outputs(name, paths, **given):
            assert path.is_relative_to(record.parent), name
    assert jobs.outputs("texts", paths) == [Path("r/data/pretraining.parquet")]
    assert jobs.outputs("train", paths, method="bge", variant="base", seed=1) == [Path("r/runs/bge/base/seed1")]
    assert len(jobs.outputs("table", paths, name="nli")) == 4


@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git itself")
def test_the_commit_is_git_s_own(tmp_path: Path) -> None:
    """On a branch, packed, in a second working tree, away from branches; and none where there is no repository."""

    def git(*arguments: str, folder: Path = tmp_path) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", folder, *names, *arguments], capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip

    assert commit(tmp_path) is None
    git("init", "--quiet")
    assert commit(tmp_path) is None
    for message in ("one", "two"):
        git("commit", "--quiet", "--allow-empty", "-m", message)
    assert commit(tmp_path) == git("rev-parse", "HEAD") != git("rev-parse", "HEAD~1")
    git("pack-refs", "--all")
    assert commit(tmp_path) == git("rev-parse", "HEAD")
    git("worktree", "add", "--quiet", "-b", "side", str(tmp_path / "side"), "HEAD~1")
    assert commit(tmp_path / "side") == git("rev-parse", "HEAD~1")
    git("checkout", "--quiet", "--detach", "HEAD", folder=tmp_path / "side")
    assert commit(tmp_path / "side") == git("rev-parse", "HEAD~1")
