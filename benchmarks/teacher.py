"""The teacher's scores of pairs: this suite against the release's procedure, on the same model and the same pairs.

The release pads every prompt on the left to 500 tokens, eight pairs a batch, and takes logits of the whole vocabulary
at every position, of which it reads two of the last. A plain procedure besides: batches sorted by length, padded to
their longest, the last position alone through two rows of the head. Scores of all three must agree. Pairs are the first
of a JSONL file with `sentence1` and `sentence2`; of the release's procedure only `--slow` are timed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from common import arguments, publish, rounds

from d2llm.config.sections import PromptSettings, TeacherSettings
from d2llm.teacher.cross_encoder import Teacher

PROMPT = PromptSettings(
    template="Below are two sentences, the premise and the hypothesis. Judge by the sentences and by what you know of the world whether the "
    "hypothesis must be true when the premise is. If you are not sure, answer no.\nPremise: {a}\nHypothesis: {b}\nAnswer yes or no:",
    yes=" yes",
    no=" no",
)


def prompts(teacher: Teacher, pairs: list[tuple[str, str]]) -> list[list[int]]:
    """Token ids of whole prompts."""
    return [teacher.pack([(a, [b])], "symmetric")[0].ids for a, b in pairs]


@torch.inference_mode()
def release(teacher: Teacher, rows: list[list[int]], length: int = 500, batch: int = 8) -> np.ndarray:
    """(n, 2): padded to a maximum, the whole vocabulary at every position."""
    prompt, parts = teacher.prompts["symmetric"], []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        ids = torch.full((len(part), length), teacher.tokenizer.pad_token_id)
        mask = torch.zeros(len(part), length, dtype=torch.long)
        for i, row in enumerate(part):
            ids[i, length - len(row) :] = torch.tensor(row)
            mask[i, length - len(row) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = teacher.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        parts.append(logits[:, -1, [prompt.yes, prompt.no]])
    return torch.cat(parts).float().numpy()


@torch.inference_mode()
def plain(teacher: Teacher, rows: list[list[int]], batch: int = 16) -> np.ndarray:
    """(n, 2): sorted by length, padded to the longest of a batch, two rows of the head at the last position."""
    prompt = teacher.prompts["symmetric"]
    weight = teacher.model.get_output_embeddings().weight[[prompt.yes, prompt.no]]
    order, logits = np.argsort([len(row) for row in rows], kind="stable"), np.zeros((len(rows), 2), dtype=np.float32)
    for start in range(0, len(rows), batch):
        members = order[start : start + batch]
        part = [rows[i] for i in members]
        ids = torch.full((len(part), max(map(len, part))), teacher.tokenizer.pad_token_id)
        for i, row in enumerate(part):
            ids[i, : len(row)] = torch.tensor(row)
        states = teacher.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        last = states[torch.arange(len(part)), [len(row) - 1 for row in part]]
        logits[members] = (last @ weight.T).float().numpy()
    return logits


def main() -> None:
    options = arguments(
        __doc__ or "",
        model={"type": Path, "required": True, "help": "folder of a causal language model"},
        pairs={"type": Path, "required": True, "help": "JSONL with sentence1 and sentence2"},
        count={"type": int, "default": 512, "help": "pairs"},
        slow={"type": int, "default": 32, "help": "pairs the release's procedure is timed on"},
        rounds={"type": int, "default": 3},
        tokens={
            "type": int,
            "default": 1024,
            "help": "of a batch of this suite (teacher.batch_tokens); on a CPU they should fit its caches",
        },
    )
    settings = TeacherSettings(symmetric=PROMPT, asymmetric=PROMPT, max_length=500, batch_tokens=options.tokens)
    teacher = Teacher.load(options.model, settings, "float32")
    lines = options.pairs.read_text(encoding="utf-8").splitlines()[: options.count]
    pairs = [(row["sentence1"], row["sentence2"]) for row in map(json.loads, lines)]
    rows = prompts(teacher, pairs)
    # An even choice over all lengths stands for all pairs.
    few = [int(i) for i in np.linspace(0, len(rows) - 1, options.slow)]
    by_length = np.argsort([len(row) for row in rows], kind="stable")[few]
    groups: dict[str, list[str]] = {}
    for a, b in pairs:
        groups.setdefault(a, []).append(b)

    def suite() -> list[np.ndarray]:
        return teacher.score(list(groups.items()), "symmetric")

    timed = rounds(
        {
            "release": lambda: release(teacher, [rows[i] for i in by_length]),
            "sorted by length": lambda: plain(teacher, rows),
            "suite": suite,
        },
        options.rounds,
        warm=False,
    )
    slow, middle = release(teacher, [rows[i] for i in by_length]), plain(teacher, rows)
    own = {
        (a, b): score
        for (a, cs), scores in zip(groups.items(), suite(), strict=True)
        for b, score in zip(cs, scores, strict=True)
    }
    fast = np.array([own[pair] for pair in pairs])
    each = {name: timed.median(name) / (len(by_length) if name == "release" else len(pairs)) for name in timed.seconds}
    table = [
        {"what": name, "ms a pair": 1000 * seconds, "times faster than the release": each["release"] / seconds,
         "than sorted by length": each["sorted by length"] / seconds}
        for name, seconds in each.items()
    ]  # fmt: skip
    lengths = [len(row) for row in rows]
    publish(
        "teacher", table,
        {"model": options.model.name, "pairs": len(pairs), "tokens a prompt": round(float(np.mean(lengths)), 1),
         "of these the instruction": len(teacher.prompts["symmetric"].prefix)},
        options.json,
    )  # fmt: skip
    spread = float(np.abs(slow).max())
    print(
        f"largest difference of logits: from the release's {np.abs(fast[by_length] - slow).max():.1e}, from the plain ones {np.abs(fast - middle).max():.1e}; largest logit {spread:.1f}"
    )


if __name__ == "__main__":
    main()
