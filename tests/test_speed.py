"""What makes evaluation quick on a GPU, proven without one: half precision by autocast on the CPU, blocks by a GPU's stated memory."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from d2llm.config.recipes import MaxLengths
from d2llm.evaluation.rows.student import StudentScorer
from d2llm.models import device, precision
from d2llm.models.scorers import iem
from d2llm.models.student import Student, same_formats

TEXTS = ["甲乙丙丁戊", "山", "日月星云吃看给书花猫狗人天地" * 3, "水火", "山水火木"]


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    spec = ("pma", {"heads": 4}), ("iem", {"hidden": 16})
    return Student(tiny.backbone("decoder"), *spec, same_formats(MaxLengths())).eval()


def test_texts_are_embedded_in_half_precision_and_scored_in_float32(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, seen = student.encode(TEXTS, "query", "symmetric"), []
    matrix = student.scorer.matrix(*2 * [torch.from_numpy(exact)], "symmetric").detach()
    assert precision.half_type(torch.device("cpu")) is None  # so the bits of a CPU stay
    monkeypatch.setattr(precision, "half_type", lambda device: torch.bfloat16)

    def watched(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append((inputs[0].dtype, torch.is_autocast_enabled("cpu")))

    student.scorer.branches["symmetric"].register_forward_pre_hook(watched)
    scorer = StudentScorer(student)
    rough = scorer.vectors(TEXTS, "query", "symmetric")
    assert rough.dtype == np.float32 and 1e-4 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()
    scored = scorer.score_pairs([(a, b) for a in TEXTS for b in TEXTS], "symmetric").reshape(matrix.shape)
    assert seen and set(seen) == {(torch.float32, False)}
    np.testing.assert_allclose(scored, matrix, atol=0.1 * float(matrix.abs().max()))
    # Weights that are in half precision already stay what they are.
    assert isinstance(precision.embedding(torch.zeros(1, dtype=torch.float16)), nullcontext)


def test_linear_layers_of_a_cpu_in_half_precision_meet_few_shapes() -> None:
    """Rows are filled up to a multiple of 64 and cut again: values and gradients are those of the layer itself."""
    layer, shapes = torch.nn.Linear(32, 48), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN202
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                shapes.extend(n for x in args if isinstance(x, torch.Tensor) for n in x.shape if n not in (32, 48))
            return function(*args, **(kwargs or {}))

    def gradients(x: torch.Tensor, even: bool) -> tuple[torch.Tensor, ...]:
        x = x.clone().requires_grad_()
        with precision.even_rows(even), torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(x)
        return out, *torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])

    for rows in (65, 100, 128, 130, 190):
        x = torch.randn(1, rows, 32)
        with Watch():
            filled = gradients(x, True)
        for own, plain in zip(filled, gradients(x, False), strict=True):
            torch.testing.assert_close(own, plain, rtol=0.02, atol=0.02 * float(plain.detach().abs().max()))
    assert set(shapes) == {128, 192}
    with precision.even_rows(True):  # whoever computes in float32 keeps his bits
        x = torch.randn(70, 32)
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(("half", "expected"), [(True, torch.bfloat16), (False, None)])
def test_a_gpu_computes_as_the_config_says(
    half: bool, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = SimpleNamespace(), SimpleNamespace()
    monkeypatch.setattr(torch.backends.cuda, "matmul", flags[0])
    monkeypatch.setattr(torch.backends, "cudnn", flags[1])
    monkeypatch.setattr(precision, "_half", dict(precision._half))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    precision.settle(half, tf32=not half, half_on_cpu=not half)
    assert precision.half_type(torch.device("cuda")) == expected
    assert precision.half_type(torch.device("cpu")) == (None if half else torch.bfloat16)
    assert [flag.allow_tf32 for flag in flags] == [not half] * 2
    with precision.scoring():
        assert not flags[0].allow_tf32 and torch.is_inference_mode_enabled()
    assert flags[0].allow_tf32 is not half
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert precision.half_type(torch.device("cuda")) == (torch.float16 if half else None)


@pytest.mark.parametrize(("gigabytes", "block"), [(1, 64 << 20), (24, 384 << 20), (80, 1 << 30)])
def test_blocks_fit_the_memory(gigabytes: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=gigabytes << 30)
    )
    device._gpu_block.cache_clear()
    assert device.block_bytes(torch.device("cuda", 0), 2 << 20) == block
    assert device.block_bytes(torch.device("cpu"), 2 << 20) == 2 << 20
    device._gpu_block.cache_clear()


def test_many_pairs_are_one_block_where_there_is_room(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    q, p = torch.randn(100, 32), torch.randn(300, 32)
    blocks, branch = [], student.scorer._branch
    monkeypatch.setattr(student.scorer, "_branch", lambda x, *rest: blocks.append(len(x)) or branch(x, *rest))
    with torch.inference_mode():
        small = student.scorer.matrix(q, p, "symmetric")
        assert blocks == [16200, 13800]  # 2 MiB hold 16,384 pairs, and 54 rows of 300
        blocks.clear()
        monkeypatch.setattr(iem, "block_of", lambda device, in_cache: 64 << 20)
        torch.testing.assert_close(student.scorer.matrix(q, p, "symmetric"), small)
    assert blocks == [30000]


def test_a_padded_step_is_split_by_length(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where texts are not laid end to end."""
    texts = [word * count for word in "甲乙丙丁" for count in (1, 2, 3, 60)] * 8
    rows, shapes = student.ids([text + "山" * i for i, text in enumerate(texts[:16])] * 8, "query", "symmetric"), []
    together = student.embed_ids(rows)
    monkeypatch.setattr(type(student.backbone), "unpadded", False)
    student.backbone.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    torch.testing.assert_close(student.embed_ids(rows), together, rtol=1e-4, atol=1e-5)
    longest = max(map(len, rows))
    assert len(shapes) > 1 and sum(n * width for n, width in shapes) < 0.8 * len(set(rows)) * longest


@pytest.mark.slow
def test_operators_grow_with_the_blocks_and_not_with_the_pairs(tmp_path: Path) -> None:
    """Counted by benchmarks/counts.py, of which a size and its fourfold are one block each; a batch is waited for, not its texts."""
    counts = []
    for times in (1, 4):
        sizes = {"texts": 100 * times, "queries": 20, "passages": 50 * times, "hidden": 16, "json": tmp_path / "counts"}
        script = Path(__file__).resolve().parent.parent / "benchmarks" / "counts.py"
        options = [str(word) for key, value in sizes.items() for word in (f"--{key}", value)]
        subprocess.run([sys.executable, script, *options], check=True, capture_output=True)
        rows = json.loads((tmp_path / "counts").read_text())["rows"]
        counts.append({row["what"]: {key: row[key] * row["of"] / 1000 for key in ("kernels", "waits")} for row in rows})
    few, many = counts
    for what in ("searching, pairs", "scoring pairs, pairs"):
        assert many[what] == pytest.approx(few[what]) and few[what]["waits"] < 10
    batches = -(-400 // 256)
    assert many["embedding, texts"]["waits"] <= 2 * batches  # one is in transformers
    assert many["sentence-transformers, texts"]["waits"] <= 3
    assert many["teacher, pairs"]["waits"] <= 2
