"""A small hub on disk: the paper's training sets, C-MTEB's tasks and the models, in the layouts the real repositories have.

Texts are made up. `root/datasets/<org>/<name>` and, of models, `root/<org>/<name>`: as tests/hub.py serves them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

WHO = ("男孩", "老人", "护士", "厨师", "司机", "学生")
WHERE = ("在公园里", "在学校里", "在医院里", "在街上", "在家里", "在河边")
DOES = ("读一本书", "吃一个苹果", "修一辆车", "画一幅画", "喝一杯茶", "等一个朋友")
OTHER = ("睡觉", "跑步", "唱歌", "哭")
# That the sets above use beside these words.
MARKS = ("甲乙丙丁号做什么，然后", "0123456789", "trainvalidationest", "T2MMarcoDuCovidCmedqaEcomMedicalVideo")


def events(rng: np.random.Generator) -> Iterator[tuple[str, str, str]]:
    while True:
        yield tuple(str(rng.choice(part)) for part in (WHO, WHERE, DOES))


def labelled(rng: np.random.Generator, count: int) -> list[tuple[str, str, int]]:
    """(sentence, sentence, 1 where the first says the second); numbers keep the texts apart."""
    rows = []
    for number, (who, where, does) in zip(range(count), events(rng), strict=False):
        a = f"{number}号{who}{where}{does}"
        rows.append((a, f"{number}号{who}{does}", 1) if number % 2 else (a, f"{number}号{who}{rng.choice(OTHER)}", 0))
    return rows


def write_sets(root: Path, count: int = 60) -> None:
    """All data sets below root/datasets."""
    rng = np.random.default_rng(0)
    sets = root / "datasets"
    write_snli(sets / "shibing624/snli-zh", labelled(rng, count))
    for repo in ("C-MTEB/ATEC", "C-MTEB/BQ", "C-MTEB/LCQMC", "C-MTEB/PAWSX", "C-MTEB/STSB", "mteb/PAWSX", "mteb/STSB", "C-MTEB/AFQMC", "C-MTEB/QBQTC"):  # fmt: skip
        scale = 5 if "STSB" in repo else 2 if "QBQTC" in repo else 1
        write_scored(sets / repo, rng, count, scale)
    for repo in ("C-MTEB/OCNLI", "C-MTEB/CMNLI"):
        write_row_of_lists(sets / repo, labelled(rng, count))
    write_t2ranking(sets / "THUIR/T2Ranking", rng, count)
    write_dureader(sets / "zyznull/dureader-retrieval-ranking", rng, count)
    write_cmedqa2(sets / "fzkuji/cMedQA2", rng, count)
    write_mmarco(sets / "unicamp-dl/mmarco", rng, count)
    for name in ("T2", "MMarco", "Du", "Covid", "Cmedqa", "Ecom", "Medical", "Video"):
        write_retrieval(sets / f"mteb/{name}Retrieval", rng, count // 3, name)
    write_languages(sets / "mteb/sts22-crosslingual-sts", rng, count)


def write_snli(folder: Path, rows: list[tuple[str, str, int]]) -> None:
    """Tabs, a header, labels as words; a row without a text and one of no label, as the real file has."""
    folder.mkdir(parents=True)
    lines = ["sentence1\tsentence2\tgold_label"]
    lines += [f"{a}\t{b}\t{('neutral', 'entailment')[label]}" for a, b, label in rows]
    lines += ['一个"引号\t\tneutral', '他说"好\t他说\t-']
    (folder / "ChineseTextualInference-train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "snli-zh.py").write_text("raise SystemExit('scripts must not run')\n")


def write_scored(folder: Path, rng: np.random.Generator, count: int, scale: int) -> None:
    """sentence1, sentence2, score; splits train, validation, test."""
    (folder / "data").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [(a, b, label * scale) for a, b, label in labelled(rng, count)]
        frame = pd.DataFrame(rows, columns=["sentence1", "sentence2", "score"]).astype({"score": "int32"})
        frame["sentence1"] = split + frame["sentence1"]
        frame.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    card(folder, {"default": {split: f"data/{split}-*" for split in ("train", "validation", "test")}})


def write_languages(folder: Path, rng: np.random.Generator, count: int) -> None:
    """sentence1, sentence2, score from 1 to 4, lang; split test."""
    (folder / "data").mkdir(parents=True)
    rows = [
        (f"{language}{a}", b, 1.0 + 3 * label, language)
        for language in ("en", "zh")
        for a, b, label in labelled(rng, count)
    ]
    frame = pd.DataFrame(rows, columns=["sentence1", "sentence2", "score", "lang"])
    frame.to_parquet(folder / "data/test-00000-of-00001.parquet")
    card(folder, {"default": {"test": "data/test-*"}})


def write_row_of_lists(folder: Path, rows: list[tuple[str, str, int]]) -> None:
    """sent1, sent2, labels: one row that holds three lists."""
    (folder / "data").mkdir(parents=True)
    one, two, label = zip(*rows, strict=True)
    frame = pd.DataFrame({"sent1": [list(one)], "sent2": [list(two)], "labels": [list(label)]})
    frame.to_parquet(folder / "data/validation-00000-of-00001.parquet")
    card(folder, {"default": {"validation": "data/validation-*"}})


def questions(rng: np.random.Generator, count: int, mark: str) -> list[tuple[str, str]]:
    """(question, passage that answers it)."""
    return [
        (f"{mark}{number}号{who}{where}做什么", f"{mark}{number}号{who}{where}{does}，然后{rng.choice(OTHER)}")
        for number, (who, where, does) in zip(range(count), events(rng), strict=False)
    ]


def write_t2ranking(folder: Path, rng: np.random.Generator, count: int) -> None:
    """Three TSV files with headers; qrels of ids."""
    (folder / "data").mkdir(parents=True)
    made = questions(rng, count, "甲")
    tsv(folder / "data/queries.train.tsv", [("qid", "text"), *((i, q) for i, (q, _) in enumerate(made))])
    tsv(folder / "data/collection.tsv", [("pid", "text"), *((100 + i, p) for i, (_, p) in enumerate(made)), (999, "")])
    qrels = [(i, 100 + i) for i in range(count)]
    tsv(folder / "data/qrels.retrieval.train.tsv", [("qid", "pid"), *qrels, (0, 999)])
    (folder / "T2Ranking.py").write_text("raise SystemExit('scripts must not run')\n")


def write_dureader(folder: Path, rng: np.random.Generator, count: int) -> None:
    """Packed JSON lines; passages as lists of objects, one of them empty."""
    folder.mkdir(parents=True)
    with gzip.open(folder / "train.jsonl.gz", "wt", encoding="utf-8") as stream:
        for number, (query, passage) in enumerate(questions(rng, count, "乙")):
            right = [{"docid": str(number), "text": passage}] if number else []
            row = {"query_id": str(number), "query": query, "positive_passages": right, "negative_passages": []}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_cmedqa2(folder: Path, rng: np.random.Generator, count: int) -> None:
    """Questions, answers, and candidates as triples of ids: a right answer comes as often as there are wrong ones."""
    (folder / "raw").mkdir(parents=True)
    made = questions(rng, count, "丙")
    pd.DataFrame({"question_id": range(count), "content": [q for q, _ in made]}).to_csv(
        folder / "raw/question.csv", index=False
    )
    answers = {"ans_id": range(500, 500 + count), "question_id": range(count), "content": [p for _, p in made]}
    pd.DataFrame(answers).to_csv(folder / "raw/answer.csv", index=False)
    triples = [(i, 500 + i, 500 + (i + shift) % count) for i in range(count) for shift in (1, 2, 3)]
    pd.DataFrame(triples, columns=["question_id", "pos_ans_id", "neg_ans_id"]).to_csv(
        folder / "raw/train_candidates.txt", index=False
    )


def write_mmarco(folder: Path, rng: np.random.Generator, count: int) -> None:
    """TSV files without headers; right passages only in triples of ids."""
    for place in ("data/google/collections", "data/google/queries/train"):
        (folder / place).mkdir(parents=True)
    made = questions(rng, count, "丁")
    tsv(folder / "data/google/queries/train/chinese_queries.train.tsv", [(i, q) for i, (q, _) in enumerate(made)])
    tsv(folder / "data/google/collections/chinese_collection.tsv", [(i, p) for i, (_, p) in enumerate(made)])
    tsv(folder / "data/triples.train.ids.small.tsv", [(i, i, (i + s) % count) for i in range(count) for s in (1, 2)])
    (folder / "mmarco.py").write_text("raise SystemExit('scripts must not run')\n")


def write_retrieval(folder: Path, rng: np.random.Generator, count: int, mark: str) -> None:
    """Configs corpus, queries and default, split dev, as mteb keeps its retrieval sets.

    As in real ones, ids of queries are ids of other passages too, relevance is graded, some passages have a title, the first query is judged without a
    relevant passage, and the last is not judged.
    """
    made = questions(rng, count, mark)
    right = [(i + 1) % count for i in range(count)]  # the id of the passage that answers question i
    judged = [(i, right[i], 1 + i % 2 if i else 0) for i in range(count - 1)]
    judged += [(i, (i + 3) % count, i % 3) for i in range(1, count - 1)]
    frames = {
        "corpus": pd.DataFrame(
            {"_id": [str(i) for i in right], "title": ["" if i % 3 else f"{mark}甲" for i in right], "text": [p for _, p in made]}
        ),
        "queries": pd.DataFrame({"_id": [str(i) for i in range(count)], "text": [q for q, _ in made]}),
        "data": pd.DataFrame([(str(q), str(d), s) for q, d, s in judged], columns=["query-id", "corpus-id", "score"]),
    }  # fmt: skip
    for name, frame in frames.items():
        (folder / name).mkdir(parents=True)
        frame.to_parquet(folder / name / "dev-00000-of-00001.parquet")
    card(folder, {name if name != "data" else "default": {"dev": f"{name}/dev-*"} for name in frames})


def card(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """The README that tells `datasets` where the splits are."""
    lines = ["---", "configs:"]
    for name, splits in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def tsv(path: Path, rows: list[tuple[object, ...]]) -> None:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


def write_models(root: Path) -> None:
    """Tiny Qwen2 with a byte-level BPE tokenizer as teachers and students of the paper and the small tier, a tiny BERT as encoders, below root."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizerFast,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    from baselines.bge import INSTRUCTION
    from d2llm.config.sections import ASYMMETRIC_ZH, SYMMETRIC_ZH

    rng = np.random.default_rng(1)
    said = [ASYMMETRIC_ZH, SYMMETRIC_ZH] * 20 + [text for row in labelled(rng, 200) for text in row[:2]]
    said += [text for row in questions(rng, 100, "") for text in row] + ["是", "不是", "能", "不能"] * 50
    said += [INSTRUCTION, *MARKS]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(said, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 1024}
    # As the real ones: the later share their embeddings, and queries share keys and values.
    later = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    earlier = {"num_key_value_heads": 4, "tie_word_embeddings": False}
    for repo, layers, more in (
        ("Qwen/Qwen1.5-7B-Chat", 3, earlier),
        ("Qwen/Qwen1.5-1.8B-Chat", 2, earlier),
        ("Qwen/Qwen2.5-1.5B-Instruct", 3, later),
        ("Qwen/Qwen2.5-0.5B-Instruct", 2, later),
    ):
        qwen = Qwen2Config(vocab_size=len(tokenizer), num_hidden_layers=layers, **(sizes | more))
        place = root / repo
        Qwen2ForCausalLM(qwen).to(torch.bfloat16).save_pretrained(place)  # as the real ones are stored
        tokenizer.save_pretrained(place)
    characters = sorted({character for text in said for character in text if not character.isspace()})
    for repo in ("BAAI/bge-large-zh-v1.5", "BAAI/bge-base-zh-v1.5"):
        place = root / repo
        place.mkdir(parents=True)
        (place / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]), encoding="utf-8"
        )
        bert = BertTokenizerFast(vocab=str(place / "vocab.txt"))
        BertModel(BertConfig(vocab_size=len(bert), num_hidden_layers=2, **sizes)).save_pretrained(place)
        bert.save_pretrained(place)
