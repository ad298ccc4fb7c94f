"""What people do with a trained student: every block of docs/searching.md, the commands, and what sentence-transformers
makes of an exported one. The index itself is in test_search."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hub
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from sentence_transformers import SentenceTransformer
from tiny_run import changed
from transformers import AutoModel

import d2llm
from d2llm import sentence_transformer
from d2llm.cli.main import main
from d2llm.cli.student import as_json, as_trec, read_texts
from d2llm.config.load import dump
from d2llm.config.schema import Config
from d2llm.models.student import Student, TextFormat
from d2llm.run.errors import ArtifactError, ConfigError, DataError
from d2llm.run.paths import STUDENT, Paths
from d2llm.search import model_card
from d2llm.search.export import export
from d2llm.search.model_card import scores

DOCUMENT = Path(__file__).parent.parent / "docs" / "searching.md"
NAMED = "results/mini/runs/d2llm/base/seed1/model"
QUESTION = "谁修好了机器？"
PASSAGES = ["工人修好了机器。", "老师没有修好机器。", "学生在公园看书。", "工人修好了机器。"]
close = np.testing.assert_allclose


@pytest.fixture(scope="module")
def trained(tiny_scores: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of D2LLM with its provenance, in a results folder of its own."""
    folder = tmp_path_factory.mktemp("searching")
    shutil.copytree(Paths.of(tiny_scores).root, folder / tiny_scores.tier)
    config = changed(tiny_scores, results=str(folder))
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert main(["train", "--config", str(folder / "config.yaml"), "--method", "d2llm", "--seed", "1"]) == 0
    return config


@pytest.fixture
def folder(trained: Config) -> Path:
    return Paths.of(trained).run("d2llm", "base", 1) / "model"


@pytest.fixture
def call(folder, tmp_path, monkeypatch, capsys):
    """Runs a command line, in which STUDENT is the student's folder, in an empty folder: its exit code and what it
    prints."""
    monkeypatch.chdir(tmp_path)

    def run(line: str, *more: str) -> tuple[int, str]:
        capsys.readouterr()
        words = [str(folder) if word == "STUDENT" else word for word in shlex.split(line)]
        code = main([*words, *more])
        printed = capsys.readouterr()
        return code, printed.out if code == 0 else printed.err

    return run


def hits_of(printed: tuple[int, str]) -> list[dict]:
    assert printed[0] == 0, printed[1]
    return [json.loads(line) for line in printed[1].splitlines()]


def test_the_python_of_the_document_runs(trained, folder, call, tmp_path):
    """As one script, as a reader would paste it; the commands are run with those of all pages (documented.py)."""
    python = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.S)
    assert len(python) == 4
    (tmp_path / "queries.txt").write_text(QUESTION + "\n", encoding="utf-8")
    export(trained, "d2llm", "base", 1, tmp_path / "exported")
    assert call("encode --student STUDENT --texts queries.txt --role query --to queries.npy")[0] == 0
    script = tmp_path / "document.py"
    script.write_text("\n".join(python).replace(NAMED, str(folder)), encoding="utf-8")
    names = runpy.run_path(str(script))
    assert names["vectors"].shape == (1, names["student"].backbone.hidden_size)
    close(np.load("queries.npy"), names["vectors"], atol=1e-6)
    assert names["scores"].shape == (1, 1) and 0 <= names["recall"] <= 1 and len(names["hits"][0][0]) == 2


INDEX = "index --student STUDENT --passages corpus.csv --column says --id nr --to made"
FIND = f"search --student STUDENT --index made --query {QUESTION} --depth 3 --format json"
# Command: what it answers.
REFUSED = {
    "search --student STUDENT --index made": "nothing to search for",
    f"{FIND} --nprobe 0": "nprobe: expected a number of at least 1; found 0",
    "index --student none --passages corpus.txt --to x --shard 4/4": "--shard: expected I/N, I from 0 to N - 1; found '4/4'",
    "merge-index --student none --shards made none --to x": "none: no index here (no such folder)",
    "search --student STUDENT --index none --query x": "none: no index here (no such folder); `d2llm index` makes one",
    "search --student STUDENT --index bare --query x": "bare: an index without its texts",
    "search --student STUDENT --index broken --query x": "; build it again (`d2llm index`",
    "index --student . --passages corpus.csv --column says --to x": "no student here (student.json is missing)",
    # Before anything is read: what is asked for cannot be written.
    "encode --student none --texts none.txt --to x.txt": "--to x.txt: expected a file that ends in .npy",
    "encode --student none --texts none.txt --to no/x.npy": "--to no/x.npy: no folder no",
    "index --student none --passages twice.csv --id nr --to x": (
        "twice.csv: line 4, column 'nr': expected every id once; found 'a', as in line 2"
    ),
    "index --student none --passages corpus.txt --id nr --to x": "--id: corpus.txt holds a text a line and has no",
    "encode --student none --texts corpus.txt --column says --to x.npy": "--column: corpus.txt holds a text a line",
    f"{FIND} --query ' '": "--query: expected a text; found ' '",
    f"{FIND} --query 'caf\udce9'": r"--query: expected a text; found 'caf\udce9'",
    f"{FIND} --quotes text": "--quotes: there is no file to take it from; give --queries",
    f"{FIND} --depth 0": "depth: expected a number of at least 1; found 0",
    f"{FIND} --device nonsense": "device 'nonsense' cannot be used here (",
    "index --student none --passages none.txt --to .": "--to .: exists and is no index",
}


def test_an_index_on_the_command_line(folder, call):
    pd.DataFrame({"nr": ["a", "b", "c", "d"], "says": PASSAGES}).to_csv("corpus.csv", index=False)
    for _ in range(2):  # the second replaces the first
        assert "made: 4 passages" in call(INDEX)[1]
    student, hits = d2llm.load(folder), hits_of(call(FIND))
    exact = dict(zip("abcd", student.score([QUESTION] * 4, PASSAGES).tolist(), strict=True))
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    for hit in hits:
        assert hit["text"] == PASSAGES["abcd".index(hit["id"])] and hit["query"] == QUESTION
        assert hit["score"] == pytest.approx(exact[hit["id"]], abs=0.02)  # kept in float16
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    ranked = [[hit["id"] for hit in hits_of(call(FIND, "--depth", depth))] for depth in "1234"]
    assert all(ranked[3][: len(ids)] == ids for ids in ranked)
    assert [name for name in ranked[3] if name in "ad"] == ["d", "a"]  # one text twice: by id, descending
    assert call(FIND.removesuffix(" --format json"))[1].startswith(QUESTION + "\n    1  ")
    d2llm.Index.build(student, PASSAGES).save("bare")
    Path("corpus.txt").write_text("\n".join(PASSAGES), encoding="utf-8")
    pd.DataFrame({"nr": ["a", "b", "a", "a"], "text": PASSAGES}).to_csv("twice.csv", index=False)
    shutil.copytree("made", "broken")
    Path("broken/passages.parquet").write_bytes(b"nothing")
    for line, message in REFUSED.items():
        code, error = call(line)
        assert code == 2 and message in error, line
    assert Path("corpus.csv").exists()


def test_lists_are_judged_by_the_queries_that_are_given(call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passages that stand for queries find themselves; that they were asked is said."""
    monkeypatch.setattr("d2llm.search.index.FEW", 1)
    judged: list[list[str]] = []
    add = d2llm.Index.add_lists
    monkeypatch.setattr(d2llm.Index, "add_lists", lambda index, q, to: judged.append(list(q)) or add(index, q, to))
    Path("corpus.txt").write_text("\n".join(PASSAGES), encoding="utf-8")
    Path("asked.txt").write_text(f"{QUESTION}\n谁看书？", encoding="utf-8")
    line = "index --student STUDENT --passages corpus.txt --to made"
    assert "of the ten best of some passages asked as queries" in call(f"{line} --candidates faiss")[1]
    assert "of the ten best of 2 queries" in call(f"{line} --candidates faiss --queries asked.txt")[1]
    merge = "merge-index --student STUDENT --shards made --to whole --candidates faiss --queries asked.txt"
    assert "of the ten best of 2 queries" in call(merge)[1]
    assert judged == [PASSAGES, [QUESTION, "谁看书？"], [QUESTION, "谁看书？"]]
    assert "--queries: they judge lists" in call(f"{line} --queries asked.txt")[1]


def test_a_score_that_is_not_finite_is_no_hit(call, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("corpus.txt").write_text("\n".join(PASSAGES), encoding="utf-8")
    assert call("index --student STUDENT --passages corpus.txt --to made")[0] == 0
    monkeypatch.setattr(d2llm.Index, "search", lambda *_: [(np.array([1, 0]), np.array([np.inf, 0.5]))])
    assert "made: the score of passage 1 is not finite; train the student again" in call(FIND)[1]


def test_a_search_has_the_mode_of_its_index(folder, call):
    Path("corpus.txt").write_text("\n".join(PASSAGES), encoding="utf-8")
    assert call("index --student STUDENT --passages corpus.txt --to made --mode symmetric")[0] == 0
    exact = d2llm.load(folder).score([QUESTION] * 4, PASSAGES, "symmetric")
    assert all(hit["score"] == pytest.approx(exact[int(hit["id"])], abs=0.02) for hit in hits_of(call(FIND)))


def test_a_file_of_queries_gives_a_trec_run(folder, call):
    pd.DataFrame({"nr": ["a", "b", "c", "d"], "text": PASSAGES}).to_csv("corpus.csv", index=False)
    pd.DataFrame({"qid": [7, 9], "asks": [QUESTION, PASSAGES[2]]}).to_csv("queries.csv", index=False)
    pd.DataFrame({"qid": ["one", "number two"], "text": PASSAGES[:2]}).to_csv("blank.csv", index=False)
    assert call("index --student STUDENT --passages corpus.csv --id nr --to made --precision full")[0] == 0
    search = "search --student STUDENT --index made"
    find = f"{search} --queries queries.csv --column asks --depth 2"
    run = [line.split(" ") for line in call(f"{find} --id qid --format trec")[1].splitlines()]
    expected = [(qid, "Q0", rank, "d2llm") for qid in "79" for rank in "12"]
    assert [(qid, q0, rank, tag) for qid, q0, _, rank, _, tag in run] == expected
    texts = {"7": QUESTION, "9": PASSAGES[2]}
    exact = d2llm.load(folder).score([texts[hit[0]] for hit in run], [PASSAGES["abcd".index(hit[2])] for hit in run])
    close([float(hit[4]) for hit in run], exact, rtol=1e-4, atol=1e-4)
    # Without a column of ids, queries are numbered, those of the command line first.
    hits = hits_of(call(f"{find} --query {PASSAGES[0]} --format json"))
    assert [hit["query_id"] for hit in hits[::2]] == ["0", "1", "2"] and hits[0]["query"] == PASSAGES[0]
    for line, message in (
        (f"{find} --query x --id qid", "--id: a text of --query has none"),
        (f"{search} --queries blank.csv --id qid --format trec", "blank.csv: id 'number two' has a blank in it"),
    ):
        code, error = call(line)
        assert code == 2 and message in error


def test_scores_of_a_trec_run_have_the_ties_of_the_search() -> None:
    values = np.array([1.0000001, 1.0, 1.0, -3e-7], dtype=np.float32)
    hits = pd.DataFrame({"id": list("abcd"), "text": "t"}).assign(rank=range(1, 5), score=values)
    query = SimpleNamespace(id="q", text="t")
    assert np.float32([line.split()[4] for line in as_trec(query, hits)]).tolist() == values.tolist()
    assert np.float32([json.loads(line)["score"] for line in as_json(query, hits)]).tolist() == values.tolist()


BLANK = "line 2: expected a text; found a blank line"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("甲\n乙\n".encode(), ["甲", "乙"]),
        ("\ufeff甲\r\n乙".encode(), ["甲", "乙"]),
        ("甲\u2028\x0c丙\n乙\x85丁\n".encode(), ["甲\u2028\x0c丙", "乙\x85丁"]),
        ("甲\n\n乙\n".encode(), BLANK),
        ("甲\n \t\r\n".encode(), BLANK),
        ("甲\n\n".encode(), BLANK),
        (b"", "no lines"),
        ("甲\n".encode() + b"caf\xe9\n", "line 2: not UTF-8 (invalid continuation byte); save the file as UTF-8"),
    ],
    ids=["plain", "mark", "separators", "blank", "blanks", "two_ends", "empty", "latin"],
)
def test_a_text_a_line_keeps_the_numbers_of_lines(content: bytes, expected: list[str] | str, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=f"^{re.escape(f'{path}: {expected}')}$"):
            read_texts(str(path))
    else:
        frame = read_texts(str(path))
        assert frame["text"].tolist() == expected and frame["id"].tolist() == ["0", "1"]


# ------------------------------------------------------------------------------------------------------------- exported
def test_the_export_in_sentence_transformers(trained, folder, tmp_path):
    place = export(trained, "d2llm", "base", 1, tmp_path / "out")
    assert not list(place.rglob("*.bin")) + list(place.rglob("*.py")) + list(place.rglob("*.pt"))
    card = (place / "README.md").read_text(encoding="utf-8")
    record = json.loads((folder.parent / "provenance.json").read_text())
    assert record["code"] in card and f"torch {record['packages']['torch']}" in card and "Not evaluated." in card
    assert "license: apache-2.0" in card and "| nli | symmetric |" in card
    readme = (DOCUMENT.parent.parent / "README.md").read_text(encoding="utf-8")
    assert re.search(r"```bibtex\n.*?```", readme, re.S)[0] in card
    # Whole: it is read where nothing else of the run is.
    assert AutoModel.from_pretrained(place / "0_Embedder" / "backbone").config.hidden_size == 32
    model = SentenceTransformer(str(place), trust_remote_code=True, device="cpu")
    queries, documents = model.encode_query(PASSAGES), model.encode_document(PASSAGES)
    np.testing.assert_array_equal(sentence_transformer.load(place, "cpu").encode_query(PASSAGES), queries)
    student, again = d2llm.load(folder), d2llm.load(place)
    for vectors, role, mode in (
        (queries, "query", "asymmetric"),
        (documents, "passage", "asymmetric"),
        (model.encode(PASSAGES), "query", "symmetric"),
    ):
        close(vectors, student.encode(PASSAGES, role, mode), rtol=1e-4, atol=1e-5)
        assert np.array_equal(again.encode(PASSAGES, role, mode), student.encode(PASSAGES, role, mode))
    asked = model.encode_query([QUESTION] * 4)
    exact = student.score([QUESTION] * 4, PASSAGES)
    close(model[1].matrix(asked[:1], documents)[0], exact, rtol=1e-4, atol=1e-4)
    close(model[1].pairs(asked, documents), exact, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="exists already"):
        export(trained, "d2llm", "base", 1, place)
    with pytest.raises(ConfigError, match="^--method d2llm --variant base --seed 77: not a run of this config"):
        export(trained, "d2llm", "base", 77, tmp_path / "none")


def test_the_terms_of_a_base_model_go_along(trained: Config, tmp_path: Path) -> None:
    for name in ("config.json", "GEMMA_TERMS.html", "NOTICE.md", "model.txt"):
        (tmp_path / name).write_text("{}")
    settings = {"models": trained.models.model_dump() | {"decoder": {"source": str(tmp_path)}}}
    config = trained.model_copy(update={"models": type(trained.models)(**settings["models"])})
    assert [file.name for file in model_card.terms(config, "sgpt", "base")] == ["GEMMA_TERMS.html", "NOTICE.md"]
    tag, text = model_card.licence(config, "sgpt", "base")
    assert tag == "other" and tmp_path.name in text and "`NOTICE.md`" in text and str(tmp_path) not in text


FROM_A_HUB = """
import sys, numpy
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("some-org/exported", trust_remote_code=True, device="cpu", revision=sys.argv[1])
numpy.save(sys.argv[2], model.encode_query(sys.argv[3:]))
"""


@pytest.mark.slow
def test_an_exported_student_comes_from_a_hub(trained: Config, folder: Path, tmp_path: Path) -> None:
    """As sentence-transformers fetches any model: by its name, with nothing but what the hub has of it."""
    export(trained, "d2llm", "base", 1, tmp_path / "hub" / "some-org" / "exported")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    with hub.serving(tmp_path / "hub") as (address, asked):
        environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", FROM_A_HUB, hub.COMMIT, str(tmp_path / "vectors.npy"), *PASSAGES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert any(path.endswith("model.safetensors") for verb, path in asked if verb == "GET")
    expected = d2llm.load(folder).encode(PASSAGES, "query", "asymmetric")
    close(np.load(tmp_path / "vectors.npy"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_late_interaction_goes_all_the_same_ways(trained, tmp_path):
    """ColBERT, a vector a token: trained, evaluated, searched and exported by what serves a vector a text."""
    root = tmp_path / "results"
    shutil.copytree(Paths.of(trained).root, root / trained.tier)
    settings = {"token_size": 8, "learning_rate": 1e-3, "hard_negatives": None}
    config = changed(trained, results=str(root), methods={"colbert": settings}, training={"texts_at_once": 7})
    (root / "config.yaml").write_text(dump(config), encoding="utf-8")
    for stage in ("train", "evaluate"):
        assert main([stage, "--config", str(root / "config.yaml"), "--method", "colbert", "--seed", "1"]) == 0
    paths = Paths.of(config)
    written = pd.read_parquet(paths.evaluation("colbert", "base", 1) / "scores.parquet")
    assert set(written["group"]) == {"nli", "sts", "ir"} and set(written["scorer"]) == {"maxsim"}
    student = d2llm.load(paths.run("colbert", "base", 1) / "model")
    [q] = student.encode([QUESTION], "query").reshape(1, 48, 8)  # training.max_length tokens of 8 numbers
    p = student.encode(PASSAGES, "passage").reshape(4, 48, 8)
    assert (q[:32] != 0).any(1).all() and not q[32:].any()  # filled up to 32 tokens
    by_hand = np.array([sum(max(a @ b for b in text if b.any()) for a in q if a.any()) for text in p])
    close(student.score([QUESTION] * 4, PASSAGES), by_hand, rtol=1e-4)
    ((rows, values),) = d2llm.Index.build(student, PASSAGES).search([QUESTION], depth=4)
    close(values, np.sort(by_hand)[::-1], rtol=1e-4)
    close(by_hand[rows], values, rtol=1e-4)
    model = sentence_transformer.load(export(config, "colbert", "base", 1, tmp_path / "out"))
    close(model[1].pairs(model.encode_query([QUESTION] * 4), model.encode_document(PASSAGES)), by_hand, rtol=1e-4)


def test_an_exported_folder_is_found_as_the_library_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token, cache folder, revision and locality come with or without names; without its student it is one line."""
    for kind in (sentence_transformer.Embedder, sentence_transformer.Interaction):
        with pytest.raises(ArtifactError, match=rf"{tmp_path}: no folder {STUDENT} in it; export the student again"):
            kind.load(str(tmp_path), STUDENT)
    asked, embedder = [], sentence_transformer.Embedder
    monkeypatch.setattr(embedder, "load_dir_path", lambda *places, **named: asked.append((places, named)))
    for places, named in ((("t", "cache", "v1"), {"local_files_only": True}), ((), {"revision": "v1", "backend": "x"})):
        with pytest.raises(ArtifactError):
            embedder.load("org/name", STUDENT, *places, **named)
    where = {"token": "t", "cache_folder": "cache", "revision": "v1", "local_files_only": True}
    assert asked == [(("org/name", STUDENT), where), (("org/name", STUDENT), {"revision": "v1"})]


def test_query_document_and_neither_are_framed_as_the_student_was_trained():
    """A student whose four formats all differ, and whose checkpoint begins texts with <bos>: the token ids tell."""
    frames = {("query", "asymmetric"): 5, ("passage", "asymmetric"): 6}
    frames |= {("query", "symmetric"): 7, ("passage", "symmetric"): 8}
    formats = {key: TextFormat((token,)) for key, token in frames.items()}
    backbone = tiny.backbone("decoder")
    tiny.framed_by(backbone.tokenizer)
    student = Student(backbone, ("mean", {}), ("cosine", {}), formats).eval()
    for task, key in (
        ("query", ("query", "asymmetric")),
        ("document", ("passage", "asymmetric")),
        (None, ("query", "symmetric")),
    ):
        features = sentence_transformer.Embedder(student).preprocess(["甲乙", "山水"], task=task)
        assert features["input_ids"].tolist() == [list(row) for row in student.ids(["甲乙", "山水"], *key)]
        assert all(frames[key] in row for row in features["input_ids"].tolist()) and features["attention_mask"].all()


def test_the_card_holds_the_runs_own_scores(tmp_path):
    columns = ["method", "variant", "seed", "task", "phenomenon", "value", "n"]
    rows = [("d2llm", "base", 1, "a", "all", 0.51239, 7), ("d2llm", "base", 1, "a", "denial", 0.4, 3),
            ("d2llm", "base", 2, "a", "all", 0.6, 7), ("bge", "base", 1, "a", "all", 0.7, 7)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=columns).assign(task_type="sts", split="test", metric="spearman")
    frame.to_csv(tmp_path / "scores.csv")
    shown = scores(tmp_path / "scores.csv", "d2llm", "base", 1).splitlines()[2:]
    assert shown == ["| a | sts | test | spearman | 0.5124 | 7 |"]
    none = [scores(tmp_path / "scores.csv", "sgpt", "base", 1), scores(tmp_path / "no.csv", "d2llm", "base", 1)]
    assert none == ["Not evaluated."] * 2


# -------------------------------------------------------------------------------------------------------------- looking
def test_attention_is_what_the_pooling_weighs_states_with(folder):
    student = d2llm.load(folder)
    tokens, shares = student.attention(QUESTION)
    assert "".join(tokens).replace(" ", "").endswith(QUESTION) and shares.shape == (len(tokens), student.pooling.heads)
    close(shares.sum(0), 1.0, atol=1e-5)
    assert (shares[: student.unpooled] == 0).all() and (shares[student.unpooled :] > 0).all()
    # From the shares alone, the embedding: values of all tokens projected, weighted, normed.
    pma = student.pooling
    states, _ = student.backbone.states(student.ids([QUESTION], "query", "asymmetric"))
    with torch.no_grad():
        values = pma.value(states[0]).view(len(tokens), pma.heads, -1)
        pooled = (torch.from_numpy(shares)[:, :, None] * values).sum(0).flatten()
        out = pma.norm0(pma.seed + pooled)
        out = pma.norm1(out + pma.output(out).relu())
    close(student.encode([QUESTION], "query")[0], out, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="pooling mean has no attention to show"):
        Student(tiny.backbone("decoder"), ("mean", {}), ("cosine", {}), student.formats).attention(QUESTION)
