"""Long scoring in pieces: an evaluation's tasks among jobs, a teacher's groups part by part. Pieces change no number, and a kill costs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from tiny_run import changed

from d2llm.config.schema import Config
from d2llm.config.sections import PromptSettings, TeacherSettings
from d2llm.evaluation import evaluate
from d2llm.run.checkpoint import Resume
from d2llm.run.paths import Paths
from d2llm.run.stages import STAGES
from d2llm.teacher import parts
from d2llm.teacher.cross_encoder import Teacher

RUN = ("bm25", "base", 1)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_shards_leave_the_files_of_an_evaluation_in_one_piece(tiny_data: Config) -> None:
    """One more shard than there are tasks: a share may be empty."""
    paths, count = Paths.of(tiny_data), 1 + len(list(Paths.of(tiny_data).tasks.iterdir()))
    evaluate.run(tiny_data, *RUN)
    whole = files(paths.evaluation(*RUN))
    assert len(whole) == 2 + count  # a file of mteb's a task, and what the model is
    sharded = changed(tiny_data, evaluation={"shards": count})
    read = STAGES["evaluate"].reads(sharded, paths, *RUN)
    assert len(read) == 1 + 2 * count and STAGES["evaluate"].reads(tiny_data, paths, *RUN) == [paths.tasks]
    for shard in range(count):
        evaluate.run_shard(sharded, *RUN, shard, count)
    for path in paths.evaluation(*RUN).rglob("*"):
        if path.is_file():
            path.unlink()
    evaluate.run(sharded, *RUN)
    assert all(path.exists() for path in read)
    assert files(paths.evaluation(*RUN)) == whole


GROUPS = [("甲乙" * (1 + i % 3), ["丙" * j + "丁" for j in range(1 + i % 4)]) for i in range(12)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    folder = tmp_path_factory.mktemp("teacher")
    tiny.backbone("decoder", folder)
    prompt = PromptSettings(template="看{a}给{b}是", yes="能", no="在")
    settings = TeacherSettings(symmetric=prompt, asymmetric=prompt, max_length=60, batch_tokens=64)
    return Teacher.load(folder, settings)


@pytest.fixture
def read(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Parts of a few groups; how many rows the teacher lays out at a time."""
    monkeypatch.setitem(parts.WORK, "cpu", 40 * 2 * teacher.model.num_parameters())
    laid, lay_out = [], teacher.lay_out
    monkeypatch.setattr(teacher, "lay_out", lambda rows, *rest: laid.append(len(rows)) or lay_out(rows, *rest))
    return laid


def resume(folder: Path, job: Any = "a job") -> Resume:
    return Resume(folder, job, minutes=1)


def test_a_killed_scoring_goes_on_after_its_last_part(
    teacher: Teacher, read: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = list(parts.parts(teacher, GROUPS, "symmetric"))
    assert len(cut) == 3 and [group for part in cut for group in part] == GROUPS
    alone = [teacher.score([group], "symmetric")[0] for group in GROUPS]
    never_killed = parts.logits_of(teacher, GROUPS, "symmetric", Resume())
    read.clear()
    score, calls = teacher.score, []

    def killed(groups: Any, mode: str) -> Any:
        calls.append(groups)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(groups, mode)

    monkeypatch.setattr(teacher, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        parts.logits_of(teacher, GROUPS, "symmetric", resume(tmp_path))
    logits = parts.logits_of(teacher, GROUPS, "symmetric", resume(tmp_path))
    assert calls == cut[:3] + cut[2:]
    for own, same, like in zip(logits, never_killed, alone, strict=True):
        np.testing.assert_array_equal(own, same)
        np.testing.assert_allclose(own, like, atol=1e-5)
    # A batch's rows are laid out when their turn comes.
    longest = max(row.length for row in teacher.plan(GROUPS, "symmetric"))
    assert len(read) > len(cut) and max(read) * 8 <= 64 < sum(read) * longest


@pytest.mark.parametrize("how", ["damaged", "of another job", "of another text", "not kept at all"])
def test_a_part_is_used_where_it_is_whole_and_ones_own(
    how: str, teacher: Teacher, read: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    groups = list(GROUPS[:2])
    parts.logits_of(teacher, groups, "symmetric", Resume() if how == "not kept at all" else resume(tmp_path))
    kept = list(tmp_path.iterdir())
    assert len(kept) == (how != "not kept at all") and read
    read.clear()
    if how == "damaged":
        kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"?")
    if how == "of another text":
        groups[1] = ("戊", groups[1][1])
    parts.logits_of(teacher, groups, "symmetric", resume(tmp_path, "another" if how == "of another job" else "a job"))
    assert read and ("computing it again" in caplog.text) == (how in ("damaged", "of another job"))
