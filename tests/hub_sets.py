"""A small hub on disk: the paper's training sets, C-MTEB's tasks and the models, laid out as the real repositories are.

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
    return [
        (f"{i}号{who}{where}{does}", f"{i}号{who}{does if i % 2 else rng.choice(OTHER)}", i % 2)
        for i, (who, where, does) in zip(range(count), events(rng), strict=False)
    ]


def write_sets(root: Path, count: int = 60) -> None:
    """All data sets below root/datasets."""
    rng, sets = np.random.default_rng(0), root / "datasets"
    write_snli(sets / "shibing624/snli-zh", labelled(rng, count))
    scored = [f"C-MTEB/{name}" for name in ("ATEC", "BQ", "LCQMC", "PAWSX", "STSB")]
    for repo in (*scored, "mteb/PAWSX", "mteb/STSB", "C-MTEB/AFQMC", "C-MTEB/QBQTC"):
        write_scored(sets / repo, rng, count, 5 if "STSB" in repo else 2 if "QBQTC" in repo else 1)
    for repo in ("C-MTEB/OCNLI", "C-MTEB/CMNLI"):
        write_row_of_lists(sets / repo, labelled(rng, count))
    write_t2ranking(sets / "THUIR/T2Ranking", questions(rng, count, "甲"))
    write_dureader(sets / "zyznull/dureader-retrieval-ranking", questions(rng, count, "乙"))
    write_cmedqa2(sets / "fzkuji/cMedQA2", questions(rng, count, "丙"))
    write_mmarco(sets / "unicamp-dl/mmarco", questions(rng, count, "丁"))
    for name in ("T2", "MMarco", "Du", "Covid", "Cmedqa", "Ecom", "Medical", "Video"):
        write_retrieval(sets / f"mteb/{name}Retrieval", rng, count // 3, name)
    write_languages(sets / "mteb/sts22-crosslingual-sts", rng, count)


def write_snli(folder: Path, rows: list[tuple[str, str, int]]) -> None:
    """Tabs, a header, labels as words; a row without a text and one of no label, as the real file has."""
    lines = [(a, b, ("neutral", "entailment")[label]) for a, b, label in rows]
    lines += [('一个"引号', "", "neutral"), ('他说"好', "他说", "-")]
    tsv(folder / "ChineseTextualInference-train.txt", [("sentence1", "sentence2", "gold_label"), *lines])
    (folder / "snli-zh.py").write_text("raise SystemExit('scripts must not run')\n")


def write_scored(folder: Path, rng: np.random.Generator, count: int, scale: int) -> None:
    """sentence1, sentence2, score; splits train, validation, test."""
    splits = {}
    for split in ("train", "validation", "test"):
        rows = [(split + a, b, label * scale) for a, b, label in labelled(rng, count)]
        splits[split] = pd.DataFrame(rows, columns=["sentence1", "sentence2", "score"]).astype({"score": "int32"})
    parquet(folder, {"default": ("data", splits)})


def write_languages(folder: Path, rng: np.random.Generator, count: int) -> None:
    """sentence1, sentence2, score from 1 to 4, lang; split test."""
    rows = [(f"{lang}{a}", b, 1.0 + 3 * label, lang) for lang in ("en", "zh") for a, b, label in labelled(rng, count)]
    frame = pd.DataFrame(rows, columns=["sentence1", "sentence2", "score", "lang"])
    parquet(folder, {"default": ("data", {"test": frame})})


def write_row_of_lists(folder: Path, rows: list[tuple[str, str, int]]) -> None:
    """sent1, sent2, labels: one row that holds three lists."""
    lists = dict(zip(("sent1", "sent2", "labels"), ([list(column)] for column in zip(*rows, strict=True)), strict=True))
    parquet(folder, {"default": ("data", {"validation": pd.DataFrame(lists)})})


def questions(rng: np.random.Generator, count: int, mark: str) -> list[tuple[str, str]]:
    """(question, passage that answers it)."""
    return [
        (f"{mark}{number}号{who}{where}做什么", f"{mark}{number}号{who}{where}{does}，然后{rng.choice(OTHER)}")
        for number, (who, where, does) in zip(range(count), events(rng), strict=False)
    ]


def write_t2ranking(folder: Path, rows: list[tuple[str, str]]) -> None:
    """Three TSV files with headers; qrels of ids."""
    tsv(folder / "data/queries.train.tsv", [("qid", "text"), *((i, q) for i, (q, _) in enumerate(rows))])
    tsv(folder / "data/collection.tsv", [("pid", "text"), *((100 + i, p) for i, (_, p) in enumerate(rows)), (999, "")])
    qrels = [(i, 100 + i) for i in range(len(rows))]
    tsv(folder / "data/qrels.retrieval.train.tsv", [("qid", "pid"), *qrels, (0, 999)])
    (folder / "T2Ranking.py").write_text("raise SystemExit('scripts must not run')\n")


def write_dureader(folder: Path, rows: list[tuple[str, str]]) -> None:
    """Packed JSON lines; passages as lists of objects, one of them empty."""
    folder.mkdir(parents=True)
    with gzip.open(folder / "train.jsonl.gz", "wt", encoding="utf-8") as stream:
        for number, (query, passage) in enumerate(rows):
            right = [{"docid": str(number), "text": passage}] if number else []
            row = {"query_id": str(number), "query": query, "positive_passages": right, "negative_passages": []}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_cmedqa2(folder: Path, rows: list[tuple[str, str]]) -> None:
    """Questions, answers, and candidates as triples of ids: a right answer comes as often as there are wrong ones."""
    ids, raw = range(len(rows)), folder / "raw"
    raw.mkdir(parents=True)
    question, answer = pd.DataFrame({"question_id": ids}), pd.DataFrame({"ans_id": [500 + i for i in ids]})
    question.assign(content=[q for q, _ in rows]).to_csv(raw / "question.csv", index=False)
    answer.assign(question_id=ids, content=[p for _, p in rows]).to_csv(raw / "answer.csv", index=False)
    triples = [(i, 500 + i, 500 + (i + shift) % len(rows)) for i in ids for shift in (1, 2, 3)]
    columns = ["question_id", "pos_ans_id", "neg_ans_id"]
    pd.DataFrame(triples, columns=columns).to_csv(raw / "train_candidates.txt", index=False)


def write_mmarco(folder: Path, rows: list[tuple[str, str]]) -> None:
    """TSV files without headers; right passages only in triples of ids."""
    queries, passages = zip(*rows, strict=True)
    tsv(folder / "data/google/queries/train/chinese_queries.train.tsv", list(enumerate(queries)))
    tsv(folder / "data/google/collections/chinese_collection.tsv", list(enumerate(passages)))
    triples = [(i, i, (i + shift) % len(rows)) for i in range(len(rows)) for shift in (1, 2)]
    tsv(folder / "data/triples.train.ids.small.tsv", triples)
    (folder / "mmarco.py").write_text("raise SystemExit('scripts must not run')\n")


def write_retrieval(folder: Path, rng: np.random.Generator, count: int, mark: str) -> None:
    """Configs corpus, queries and default, split dev, as mteb keeps its retrieval sets.

    As in real ones, ids of queries are ids of other passages too, relevance is graded, some passages have a title, the
    first query is judged without a relevant passage, and the last is not judged.
    """
    texts = questions(rng, count, mark)
    right = [(i + 1) % count for i in range(count)]  # the id of the passage that answers question i
    judged = [(i, right[i], 1 + i % 2 if i else 0) for i in range(count - 1)]
    judged += [(i, (i + 3) % count, i % 3) for i in range(1, count - 1)]
    titles = ["" if i % 3 else f"{mark}甲" for i in right]
    corpus = pd.DataFrame({"_id": list(map(str, right)), "title": titles, "text": [p for _, p in texts]})
    queries = pd.DataFrame({"_id": [str(i) for i in range(count)], "text": [q for q, _ in texts]})
    qrels = pd.DataFrame([(str(q), str(d), s) for q, d, s in judged], columns=["query-id", "corpus-id", "score"])
    frames = {"corpus": ("corpus", corpus), "queries": ("queries", queries), "default": ("data", qrels)}
    parquet(folder, {config: (place, {"dev": frame}) for config, (place, frame) in frames.items()})


def parquet(folder: Path, configs: dict[str, tuple[str, dict[str, pd.DataFrame]]]) -> None:
    """{config: (folder, {split: frame})} as Parquet files, and the README that tells `datasets` where they are."""
    lines = ["---", "configs:"]
    for config, (place, splits) in configs.items():
        (folder / place).mkdir(parents=True)
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, frame in splits.items():
            frame.to_parquet(folder / place / f"{split}-00000-of-00001.parquet")
            lines += [f"  - split: {split}", f"    path: {place}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def tsv(path: Path, rows: list[tuple[object, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


def lay_out(place: Path, **parts: int) -> None:
    """The weights that `save_pretrained` left in a folder as repositories have them: {safetensors or bin: parts}."""
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    save = {"safetensors": lambda part, file: save_file(part, file, {"format": "pt"}), "bin": torch.save}
    for ending, count in parts.items():
        stem, index = {"safetensors": "model", "bin": "pytorch_model"}[ending], {}
        for part in range(count):
            name = f"{stem}-{part + 1:05}-of-{count:05}.{ending}" if count > 1 else f"{stem}.{ending}"
            kept = {key: state[key] for key in sorted(state)[part::count]}
            save[ending](kept, place / name)
            index |= dict.fromkeys(kept, name)
        if count > 1:
            (place / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


# What lies beside a model in real repositories and nothing here reads.
BESIDE = ("README.md", ".gitattributes", "tf_model.h5", "onnx/model.onnx", "onnx/config.json", "1_Pooling/config.json")
BESIDE += ("2_Dense/model.safetensors", "model.fp16.safetensors", "openvino/openvino_model.bin", "training_args.bin")


def write_beside(place: Path) -> None:
    for name in BESIDE:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("never fetched")


def write_models(root: Path) -> None:
    """Tiny Qwen2 with a byte-level BPE tokenizer as teachers and students of the paper and the small tier, a tiny BERT
    as encoders, below root: whole or in parts, safetensors, .bin or both, as the real ones."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, BertTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from transformers import PreTrainedTokenizerFast as Fast

    from baselines.bge import INSTRUCTION
    from d2llm.config.sections import ASYMMETRIC_ZH, SYMMETRIC_ZH

    rng = np.random.default_rng(1)
    texts = [ASYMMETRIC_ZH, SYMMETRIC_ZH] * 20 + [text for row in labelled(rng, 200) for text in row[:2]]
    texts += [text for row in questions(rng, 100, "") for text in row] + ["是", "不是", "能", "不能"] * 50
    texts += [INSTRUCTION, *MARKS]
    bpe, end, bytes_ = Tokenizer(models.BPE()), "<|endoftext|>", pre_tokenizers.ByteLevel.alphabet()
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1200, special_tokens=[end], initial_alphabet=bytes_))
    tokenizer = Fast(tokenizer_object=bpe, eos_token=end, pad_token=end)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 1024}
    # As the real ones: the later share their embeddings, and queries share keys and values.
    later = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    earlier = {"num_key_value_heads": 4, "tie_word_embeddings": False}
    for name, layers, parts, more in (
        ("1.5-7B-Chat", 3, 4, earlier),
        ("1.5-1.8B-Chat", 2, 1, earlier),
        ("2.5-1.5B-Instruct", 3, 1, later),
        ("2.5-0.5B-Instruct", 2, 1, later),
    ):
        qwen = Qwen2Config(vocab_size=len(tokenizer), num_hidden_layers=layers, **(sizes | more))
        place = root / f"Qwen/Qwen{name}"
        Qwen2ForCausalLM(qwen).to(torch.bfloat16).save_pretrained(place)  # as the real ones are stored
        lay_out(place, safetensors=parts)
        tokenizer.save_pretrained(place)
        write_beside(place)
    letters = sorted({letter for text in texts for letter in text if not letter.isspace()})
    for name, parts in (("large", {"safetensors": 1, "bin": 1}), ("base", {"bin": 1})):
        place = root / f"BAAI/bge-{name}-zh-v1.5"
        place.mkdir(parents=True)
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
        (place / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
        bert = BertTokenizerFast(vocab=str(place / "vocab.txt"))
        BertModel(BertConfig(vocab_size=len(bert), num_hidden_layers=2, **sizes)).save_pretrained(place)
        lay_out(place, **parts)
        bert.save_pretrained(place)
        write_beside(place)
