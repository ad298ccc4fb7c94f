"""What people do with a trained student: every block of docs/searching.md, the commands, and what sentence-transformers makes of an exported one."""

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

import hub
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_run import changed

import d2llm
from d2llm.cli.main import main, parser
from d2llm.cli.student import read_texts
from d2llm.config.load import dump
from d2llm.config.schema import Config
from d2llm.run.errors import ArtifactError, ConfigError, DataError
from d2llm.run.paths import STUDENT, Paths

DOCUMENT = Path(__file__).parent.parent / "docs" / "searching.md"
NAMED = "results/mini/runs/d2llm/base/seed1/model"
QUESTION = "谁修好了机器？"
PASSAGES = ["工人修好了机器。", "老师没有修好机器。", "学生在公园看书。", "工人修好了机器。"]


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


def test_the_blocks_of_the_document_run(trained, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) == 4
    (tmp_path / "queries.txt").write_text(QUESTION + "\n", encoding="utf-8")
    pd.DataFrame({"text": PASSAGES}).to_json("corpus.jsonl", orient="records", lines=True, force_ascii=False)
    commands = [
        shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S) for line in block.splitlines()
    ]
    assert [command[:2] for command in commands] == [
        ["d2llm", name] for name in ("encode", "index", "search", "export")
    ]
    for command in commands:
        real = {NAMED: str(folder), "results/mini/config.yaml": str(Path(trained.results) / "config.yaml")}
        # The document's Python builds `index` as well; the command's replaces it.
        assert main([real.get(word, word) for word in command[1:]]) == 0
    # As one script, as a reader would paste them.
    script = tmp_path / "document.py"
    script.write_text("\n".join(blocks).replace(NAMED, str(folder)), encoding="utf-8")
    names = runpy.run_path(str(script))
    assert names["vectors"].shape == (1, names["student"].backbone.hidden_size)
    np.testing.assert_allclose(np.load("queries.npy"), names["vectors"], atol=1e-6)
    assert names["scores"].shape == (1, 1) and 0 <= names["recall"] <= 1 and len(names["hits"][0][0]) == 2


def test_scores_of_pairs_are_the_module_on_embeddings(folder):
    student = d2llm.load(folder)
    for mode in ("symmetric", "asymmetric"):
        found = student.score([QUESTION] * 4, PASSAGES, mode)
        q, p = (
            torch.from_numpy(student.encode(x, role, mode))
            for x, role in (([QUESTION], "query"), (PASSAGES, "passage"))
        )
        iem = student.scorer
        x = iem.first(torch.cat([q.expand(4, -1), p], 1)).relu()
        x = x.square() if iem.squared else x
        expected = iem.head(iem.branches[mode](x).relu())[:, 0]
        np.testing.assert_allclose(found, expected.detach(), rtol=1e-4, atol=1e-4)
        assert found[0] == found[3]
    with pytest.raises(ValueError, match="1 queries and 4 passages: expected one passage a query"):
        student.score([QUESTION], PASSAGES)


def test_an_index_on_the_command_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"nr": ["a", "b", "c", "d"], "says": PASSAGES}).to_csv("corpus.csv", index=False)
    build = [
        "index",
        "--student",
        str(folder),
        "--passages",
        "corpus.csv",
        "--column",
        "says",
        "--id",
        "nr",
        "--to",
        "made",
    ]
    assert main(build) == 0 and main(build) == 0  # the second replaces the first
    assert "made: 4 passages" in capsys.readouterr().out
    find = [
        "search",
        "--student",
        str(folder),
        "--index",
        "made",
        "--query",
        QUESTION,
        "--depth",
        "3",
        "--format",
        "json",
    ]
    assert main(find) == 0
    hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    student = d2llm.load(folder)
    exact = dict(zip("abcd", student.score([QUESTION] * 4, PASSAGES).tolist(), strict=True))
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    for hit in hits:
        assert hit["text"] == PASSAGES["abcd".index(hit["id"])] and hit["query"] == QUESTION
        assert hit["score"] == pytest.approx(exact[hit["id"]], abs=0.02)  # kept in float16
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    found = []
    for depth in "1234":
        assert main([*find, "--depth", depth]) == 0
        found.append([json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()])
    assert all(found[3][: len(ids)] == ids for ids in found)
    assert [name for name in found[3] if name in "ad"] == ["d", "a"]  # one text twice: by id, descending
    assert main(find[:-2]) == 0
    assert capsys.readouterr().out.startswith(QUESTION + "\n    1  ")
    d2llm.Index.build(student, PASSAGES).save("bare")
    Path("corpus.txt").write_text("\n".join(PASSAGES), encoding="utf-8")
    pd.DataFrame({"nr": ["a", "b", "a", "a"], "text": PASSAGES}).to_csv("twice.csv", index=False)
    shutil.copytree("made", "broken")
    Path("broken/passages.parquet").write_bytes(b"nothing")
    for words, message in (
        (["search", "--student", str(folder), "--index", "made"], "nothing to search for"),
        ([*find, "--share", "2"], "share: expected a number above 0 and at most 1"),
        (
            ["search", "--student", str(folder), "--index", "none", "--query", "x"],
            "none: no index here (no such folder); `d2llm index` makes one",
        ),
        (["search", "--student", str(folder), "--index", "bare", "--query", "x"], "bare: an index without its texts"),
        (["search", "--student", str(folder), "--index", "broken", "--query", "x"], "; build it again (`d2llm index`"),
        (
            ["index", "--student", str(tmp_path), "--passages", "corpus.csv", "--column", "says", "--to", "x"],
            "no student here (student.json is missing)",
        ),
        (["index", "--student", str(folder), "--passages", "corpus.csv", "--to", "x"], "no column 'text'"),
        (["encode", "--student", str(folder), "--texts", "none.txt", "--to", "x.npy"], "none.txt: no such file"),
        # Before anything is read: what is asked for cannot be written.
        (
            ["encode", "--student", "none", "--texts", "none.txt", "--to", "x.txt"],
            "--to x.txt: expected a file that ends in .npy",
        ),
        (["encode", "--student", "none", "--texts", "none.txt", "--to", "no/x.npy"], "--to no/x.npy: no folder no"),
        (
            ["index", "--student", "none", "--passages", "twice.csv", "--id", "nr", "--to", "x"],
            "twice.csv: line 4, column 'nr': expected every id once; found 'a', as in line 2",
        ),
        (
            ["index", "--student", "none", "--passages", "corpus.txt", "--id", "nr", "--to", "x"],
            "--id: corpus.txt holds a text a line and has no columns",
        ),
        (
            ["encode", "--student", "none", "--texts", "corpus.txt", "--column", "says", "--to", "x.npy"],
            "--column: corpus.txt holds a text a line and has no columns",
        ),
        ([*find, "--query", " "], "--query: expected a text; found ' '"),
        ([*find, "--query", "\u200b"], r"--query: expected a text; found '\u200b'"),
        ([*find, "--query", "caf\udce9"], r"--query: expected a text; found 'caf\udce9'"),
        ([*find, "--quotes", "text"], "--quotes: there is no file to take it from; give --queries"),
        ([*find, "--depth", "0"], "depth: expected a number of at least 1; found 0"),
        ([*find, "--device", "nonsense"], "device 'nonsense' cannot be used here ("),
        ([*find, "--device", "meta"], "device 'meta' cannot be used here ("),
        (["index", "--student", "none", "--passages", "none.txt", "--to", "."], "--to .: exists and is no index"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "corpus.csv").exists()


def test_the_export_in_sentence_transformers(trained, folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    from d2llm import sentence_transformer
    from d2llm.search.export import export

    place = export(trained, "d2llm", "base", 1, tmp_path / "out")
    assert not list(place.rglob("*.bin")) + list(place.rglob("*.py")) + list(place.rglob("*.pt"))
    card = (place / "README.md").read_text(encoding="utf-8")
    record = json.loads((folder.parent / "provenance.json").read_text())
    assert record["code"] in card and f"torch {record['packages']['torch']}" in card and "Not evaluated." in card
    model = SentenceTransformer(str(place), trust_remote_code=True, device="cpu")
    assert isinstance(sentence_transformer.load(place), SentenceTransformer)
    np.testing.assert_array_equal(
        sentence_transformer.load(place, "cpu").encode_query(PASSAGES), model.encode_query(PASSAGES)
    )
    student = d2llm.load(folder)
    both = d2llm.load(place)
    for found, role, mode in (
        (model.encode_query(PASSAGES), "query", "asymmetric"),
        (model.encode_document(PASSAGES), "passage", "asymmetric"),
        (model.encode(PASSAGES), "query", "symmetric"),
    ):
        np.testing.assert_allclose(found, student.encode(PASSAGES, role, mode), rtol=1e-4, atol=1e-5)
        assert np.array_equal(both.encode(PASSAGES, role, mode), student.encode(PASSAGES, role, mode))
    scores = model[1].matrix(model.encode_query([QUESTION]), model.encode_document(PASSAGES))
    np.testing.assert_allclose(scores[0], student.score([QUESTION] * 4, PASSAGES), rtol=1e-4, atol=1e-4)
    pairs = model[1].pairs(model.encode_query([QUESTION] * 4), model.encode_document(PASSAGES))
    np.testing.assert_allclose(pairs, scores[0], rtol=1e-4, atol=1e-4)
    assert model.get_embedding_dimension() == student.backbone.hidden_size
    model.save(str(tmp_path / "again"))  # as its own `save` has it, too
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode_query(PASSAGES), model.encode_query(PASSAGES), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="exists already"):
        export(trained, "d2llm", "base", 1, place)
    near = "not a run of this config; .* or take the nearest: --method d2llm --variant base --seed 1$"
    for method, seed in (("d2llm", 77), ("dllm", 1)):
        with pytest.raises(ConfigError, match=f"^--method {method} --variant base --seed {seed}: {near}"):
            export(trained, method, "base", seed, tmp_path / "none")


FROM_A_HUB = """
import sys, numpy
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("some-org/exported", trust_remote_code=True, device="cpu", revision=sys.argv[1])
numpy.save(sys.argv[2], model.encode_query(sys.argv[3:]))
"""


@pytest.mark.slow
def test_an_exported_student_comes_from_a_hub(trained: Config, folder: Path, tmp_path: Path) -> None:
    """As sentence-transformers fetches any model: by its name, with nothing but what the hub has of it."""
    from d2llm.search.export import export

    export(trained, "d2llm", "base", 1, tmp_path / "hub" / "some-org" / "exported")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    with hub.serving(tmp_path / "hub") as (address, asked):
        environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", FROM_A_HUB, hub.COMMIT, str(tmp_path / "found.npy"), *PASSAGES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert any(path.endswith("model.safetensors") for method, path in asked if method == "GET")
    expected = d2llm.load(folder).encode(PASSAGES, "query", "asymmetric")
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, rtol=1e-4, atol=1e-5)


def test_late_interaction_goes_all_the_same_ways(trained, tmp_path):
    """ColBERT, a vector a token: trained, evaluated, searched and exported by what serves a vector a text."""
    from d2llm import sentence_transformer
    from d2llm.search.export import export

    root = tmp_path / "results"
    shutil.copytree(Paths.of(trained).root, root / trained.tier)
    settings = {"token_size": 8, "learning_rate": 1e-3, "hard_negatives": None}
    config = changed(trained, results=str(root), methods={"colbert": settings}, training={"texts_at_once": 7})
    (root / "config.yaml").write_text(dump(config), encoding="utf-8")
    for stage in ("train", "evaluate"):
        assert main([stage, "--config", str(root / "config.yaml"), "--method", "colbert", "--seed", "1"]) == 0
    scores = pd.concat(map(pd.read_parquet, (root / config.tier / "evaluations" / "colbert").rglob("scores.parquet")))
    assert set(scores["task_type"]) == {"pair_classification", "sts", "retrieval"} and set(scores["scorer"]) == {
        "maxsim"
    }
    run = Paths.of(config).run("colbert", "base", 1)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["updates"] == 6 and summary["parameters"]["head_trained"] == 8 * 32

    student = d2llm.load(run / "model")
    assert student.width == 48 * 8  # training.max_length tokens of 8 numbers
    q, p = (student.encode(texts, role).reshape(len(texts), 48, 8) for texts, role in (([QUESTION], "query"), (PASSAGES, "passage")))  # fmt: skip
    by_hand = [sum(max(a @ b for b in text if b.any()) for a in q[0] if a.any()) for text in p]
    assert (q[0][:32] != 0).any(1).all() and not q[0][32:].any()  # filled up to 32 tokens
    np.testing.assert_allclose(student.score([QUESTION] * 4, PASSAGES), by_hand, rtol=1e-4)
    ((rows, found),) = d2llm.Index.build(student, PASSAGES).search([QUESTION], depth=4)
    np.testing.assert_allclose(found, sorted(by_hand, reverse=True), rtol=1e-4)
    np.testing.assert_allclose(np.array(by_hand)[rows], found, rtol=1e-4)
    model = sentence_transformer.load(export(config, "colbert", "base", 1, tmp_path / "out"))
    assert model.get_embedding_dimension() == 48 * 8
    pairs = model[1].pairs(model.encode_query([QUESTION] * 4), model.encode_document(PASSAGES))
    np.testing.assert_allclose(pairs, by_hand, rtol=1e-4)
    assert "embeddings of 384 numbers" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["Embedder", "Interaction"])
def test_an_exported_folder_without_its_student_is_one_line(kind: str, tmp_path: Path) -> None:
    from d2llm import sentence_transformer

    with pytest.raises(ArtifactError, match=rf"{tmp_path}: no folder {STUDENT} in it; export the student again"):
        getattr(sentence_transformer, kind).load(str(tmp_path), STUDENT)


def test_where_a_student_lies_may_come_with_or_without_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base class takes token, cache folder, revision and locality either way."""
    from d2llm.sentence_transformer import Embedder

    asked = []
    monkeypatch.setattr(Embedder, "load_dir_path", lambda *places, **named: asked.append((places, named)))
    for places, named in ((("t", "cache", "v1"), {"local_files_only": True}), ((), {"revision": "v1", "backend": "x"})):
        with pytest.raises(ArtifactError):
            Embedder.load("org/name", STUDENT, *places, **named)
    assert asked == [
        (("org/name", STUDENT), {"token": "t", "cache_folder": "cache", "revision": "v1", "local_files_only": True}),
        (("org/name", STUDENT), {"revision": "v1"}),
    ]


def test_query_document_and_neither_are_framed_as_the_student_was_trained():
    """A student whose four formats all differ: which one was used stands in the token ids."""
    import tiny

    from d2llm.models.student import Student, TextFormat
    from d2llm.sentence_transformer import Embedder

    frames = {
        ("query", "asymmetric"): 5,
        ("passage", "asymmetric"): 6,
        ("query", "symmetric"): 7,
        ("passage", "symmetric"): 8,
    }
    formats = {key: TextFormat((token,)) for key, token in frames.items()}
    embedder = Embedder(Student(tiny.backbone("decoder"), ("mean", {}), ("cosine", {}), formats).eval())
    text = " ".join(tiny.WORDS[:3])
    for task, token in (("query", 5), ("document", 6), (None, 7)):
        features = embedder.preprocess([text, text], task=task)
        assert features["input_ids"][:, 0].tolist() == [token, token] and features["attention_mask"].all()


def test_an_exported_student_begins_texts_as_the_checkpoint_it_was_trained_from(tmp_path):
    import tiny

    from d2llm.methods.registry import method
    from d2llm.sentence_transformer import load

    trained = method("d2llm")
    backbone = tiny.backbone("decoder")
    tiny.framed_by(backbone.tokenizer)
    student = trained.build(backbone, trained.recipe({"pooling": {"heads": 4}, "interaction": {"hidden": 16}}))
    student.save(tmp_path)
    texts = ["甲乙", "山水"]
    for task, role in (("query", "query"), ("document", "passage")):
        features = load(tmp_path)[0].preprocess(texts, task=task)
        expected = [[backbone.tokenizer.bos_token_id, *tiny.ids(text)] for text in texts]
        assert (
            features["input_ids"].tolist() == expected == [list(row) for row in student.ids(texts, role, "asymmetric")]
        )


def test_the_card_holds_the_runs_own_scores(tmp_path):
    from d2llm.search.export import scores

    same = ("sts", "test", "spearman")
    rows = [
        ("d2llm", "base", 1, "a", "all", *same, 0.51239, 7), ("d2llm", "base", 1, "a", "denial", *same, 0.4, 3),
        ("d2llm", "base", 2, "a", "all", *same, 0.6, 7), ("bge", "base", 1, "a", "all", *same, 0.7, 7),
    ]  # fmt: skip
    columns = ["method", "variant", "seed", "task", "phenomenon", "task_type", "split", "metric", "value", "n"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "scores.csv")
    assert scores(tmp_path / "scores.csv", "d2llm", "base", 1).splitlines()[2:] == [
        "| a | sts | test | spearman | 0.5124 | 7 |"
    ]
    assert (
        scores(tmp_path / "scores.csv", "sgpt", "base", 1)
        == scores(tmp_path / "no.csv", "d2llm", "base", 1)
        == "Not evaluated."
    )


def test_attention_is_what_the_pooling_weighs_states_with(folder):
    student = d2llm.load(folder)
    tokens, shares = student.attention(QUESTION)
    assert "".join(tokens).replace(" ", "").endswith(QUESTION) and shares.shape == (len(tokens), student.pooling.heads)
    np.testing.assert_allclose(shares.sum(0), 1.0, atol=1e-5)
    assert (shares[: student.unpooled] == 0).all() and (shares[student.unpooled :] > 0).all()
    # From the shares alone, the embedding: values of all tokens projected, weighted, normed.
    pma = student.pooling
    states, _ = student.backbone.states(student.ids([QUESTION], "query", "asymmetric"))
    with torch.no_grad():
        values = pma.value(states[0]).view(len(tokens), pma.heads, -1)
        pooled = (torch.from_numpy(shares)[:, :, None] * values).sum(0).flatten()
        out = pma.norm0(pma.seed + pooled)
        out = pma.norm1(out + pma.output(out).relu())
    np.testing.assert_allclose(student.encode([QUESTION], "query")[0], out, rtol=1e-4, atol=1e-5)
    student.pooling_spec, student.pooling = ("mean", {}), torch.nn.Identity()
    with pytest.raises(ConfigError, match="pooling mean has no attention to show"):
        student.attention(QUESTION)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"device 'cuda' cannot be used here \(.*\); choose one of cpu"):
        d2llm.load("none", device="cuda")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("甲\n乙\n".encode(), ["甲", "乙"]),
        ("\ufeff甲\r\n乙".encode(), ["甲", "乙"]),
        ("甲\u2028\x0c丙\n乙\x85丁\n".encode(), ["甲\u2028\x0c丙", "乙\x85丁"]),
        ("甲\n\n乙\n".encode(), "line 2: expected a text; found a blank line"),
        ("甲\n \t\r\n".encode(), "line 2: expected a text; found a blank line"),
        ("甲\n\n".encode(), "line 2: expected a text; found a blank line"),
        (b"", "no lines"),
        ("甲\n".encode() + b"caf\xe9\n", "line 2: not UTF-8 (invalid continuation byte); save the file as UTF-8"),
    ],
    ids=["plain", "mark", "separators", "blank", "blanks", "two_ends", "empty", "latin"],
)
def test_a_text_a_line_keeps_the_numbers_of_lines(content: bytes, expected: list[str] | str, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    if isinstance(expected, list):
        found = read_texts(str(path))
        assert found["text"].tolist() == expected and found["id"].tolist() == ["0", "1"]
        return
    with pytest.raises(DataError) as error:
        read_texts(str(path))
    assert str(error.value) == f"{path}: {expected}"


def test_a_search_has_the_mode_of_its_index(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("\n".join(PASSAGES), encoding="utf-8")
    find = ["search", "--student", str(folder), "--index", "made", "--query", QUESTION, "--format", "json"]
    assert main(["index", *find[1:3], "--passages", "corpus.txt", "--to", "made", "--mode", "symmetric"]) == 0
    capsys.readouterr()
    assert main(find) == 0
    hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    exact = d2llm.load(folder).score([QUESTION] * 4, PASSAGES, "symmetric")
    assert [hit["score"] for hit in hits] == pytest.approx([exact[int(hit["id"])] for hit in hits], abs=0.02)
    with pytest.raises(SystemExit):
        main([*find, "--mode", "symmetric"])
    assert "unrecognized arguments: --mode" in capsys.readouterr().err


def test_a_file_of_queries_gives_a_trec_run(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"nr": ["a", "b", "c", "d"], "text": PASSAGES}).to_csv("corpus.csv", index=False)
    pd.DataFrame({"qid": [7, 9], "asks": [QUESTION, PASSAGES[2]]}).to_csv("queries.csv", index=False)
    student = ["--student", str(folder)]
    assert (
        main(["index", *student, "--passages", "corpus.csv", "--id", "nr", "--to", "made", "--precision", "full"]) == 0
    )
    find = ["search", *student, "--index", "made", "--queries", "queries.csv", "--column", "asks", "--depth", "2"]
    capsys.readouterr()
    assert main([*find, "--id", "qid", "--format", "trec"]) == 0
    run = [line.split(" ") for line in capsys.readouterr().out.splitlines()]
    assert [(qid, q0, rank, tag) for qid, q0, _, rank, _, tag in run] == [
        (qid, "Q0", rank, "d2llm") for qid in "79" for rank in "12"
    ]
    loaded, texts = d2llm.load(folder), {"7": QUESTION, "9": PASSAGES[2]}
    exact = loaded.score([texts[hit[0]] for hit in run], [PASSAGES["abcd".index(hit[2])] for hit in run])
    np.testing.assert_allclose([float(hit[4]) for hit in run], exact, rtol=1e-4, atol=1e-4)
    # Without a column of ids, queries are numbered, those of the command line first.
    assert main([*find, "--query", PASSAGES[0], "--format", "json"]) == 0
    hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(hit["query_id"], hit["query"]) for hit in hits[::2]] == [
        ("0", PASSAGES[0]), ("1", QUESTION), ("2", PASSAGES[2])
    ]  # fmt: skip
    pd.DataFrame({"qid": ["one", "number two"], "text": PASSAGES[:2]}).to_csv("blank.csv", index=False)
    for words, message in (
        ([*find, "--query", "x", "--id", "qid"], "--id: a text of --query has none"),
        ([*find[:5], "--query", "x", "--column", "y"], "--column: there is no file to take it from; give --queries"),
        (
            [*find[:5], "--queries", "blank.csv", "--id", "qid", "--format", "trec"],
            "blank.csv: id 'number two' has a blank in it, which a TREC run cannot hold; choose --format json",
        ),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_every_command_shows_an_example():
    for name in ("encode", "index", "search", "export"):
        made = parser()._subparsers._group_actions[0].choices[name]  # noqa: SLF001
        words = shlex.split(made.epilog.removeprefix("example: d2llm "))
        assert parser().parse_args(words).call is not None
