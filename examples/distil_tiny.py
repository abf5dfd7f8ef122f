"""Distil the tiny sentiment model of this folder from a larger DistilBERT.

    python examples/distil_tiny.py TEACHER SST2/train.tsv OUT --eval SST2/dev.tsv SST2/test-labeled.tsv

TEACHER is a folder with a DistilBertForSequenceClassification that was fine-tuned for sentiment. The student has two
layers; its word and position vectors start as the principal components of the teacher's, so that words that never occur
in the training text still mean something. It learns the teacher's probabilities on the training text and on altered
copies of it (words masked, parts cut out, two texts joined). Needs transformers; about 20 minutes on one CPU
core, 12 of them for the teacher's answers, which `--cache` keeps.
"""

import argparse
import hashlib
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DistilBertConfig, PreTrainedTokenizerBase
from transformers import DistilBertForSequenceClassification as Classifier

log = logging.getLogger("distil_tiny")


def read_tsv(path: Path) -> list[tuple[str, int]]:
    """(sentence, label) of each row; the file has a header, tabs and no quoting."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    columns = header.split("\t")
    text, label = columns.index("sentence"), columns.index("label")
    fields = (line.split("\t") for line in lines)
    return [(row[text].strip(), int(row[label])) for row in fields]


def altered(texts: list[str], copies: int, mask: str, rng: np.random.Generator) -> list[str]:
    """`copies` altered versions of each text: a part cut out, another text joined on, or words masked."""
    out = []
    for text in texts * copies:
        words, kind = text.split(), rng.random()
        if kind < 0.25 and len(words) > 4:
            size = int(rng.integers(2, len(words)))
            start = int(rng.integers(0, len(words) - size + 1))
            words = words[start : start + size]
        elif kind < 0.5:
            words += texts[int(rng.integers(len(texts)))].split()
        else:
            words = [mask if rng.random() < 0.15 else word for word in words]
        out.append(" ".join(words))
    return out


def batches(ids: list[list[int]], tokens: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
    """Row numbers, grouped by like length, each group of at most `tokens` padded tokens; shuffled if `rng` is given."""
    lengths = np.array([len(row) for row in ids])
    # Noise before sorting: each epoch puts other rows together, yet rows of one batch stay alike in length.
    noise = rng.uniform(0, 2, len(ids)) if rng else 0
    groups: list[list[int]] = []
    longest = tokens
    for row in np.argsort(lengths + noise, kind="stable"):
        longest = max(longest, lengths[row])
        if not groups or longest * (len(groups[-1]) + 1) > tokens:
            groups.append([])
            longest = lengths[row]
        groups[-1].append(row)
    if rng:
        rng.shuffle(groups)
    return [np.array(group) for group in groups]


def padded(ids: list[list[int]], rows: np.ndarray) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, both int64 [rows, longest row]; 0 is [PAD]."""
    longest = max(len(ids[row]) for row in rows)
    out = torch.tensor([ids[row] + [0] * (longest - len(ids[row])) for row in rows])
    return {"input_ids": out, "attention_mask": (out != 0).long()}


@torch.inference_mode()
def logits(model: Classifier, ids: list[list[int]]) -> torch.Tensor:
    """The model's answers, float32 [rows, labels]."""
    model.eval()
    out = torch.empty(len(ids), model.config.num_labels)
    for rows in batches(ids, 2048):
        out[rows] = model(**padded(ids, rows)).logits.float()
    return out


def cached_logits(model: Classifier, ids: list[list[int]], weights: bytes, cache: Path | None) -> torch.Tensor:
    """`logits`, kept in the folder `cache` under a name made of the model's weights and the ids."""
    if cache is None:
        return logits(model, ids)
    path = cache / f"logits-{hashlib.sha256(weights + json.dumps(ids).encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, logits(model, ids).numpy())
    return torch.from_numpy(np.load(path))


def make_student(teacher: Classifier, dim: int, layers: int, heads: int) -> Classifier:
    """A small classifier with the teacher's vocabulary, positions and labels."""
    inherited = ("vocab_size", "max_position_embeddings", "id2label", "label2id", "problem_type")
    sizes = {"dim": dim, "hidden_dim": 4 * dim, "n_layers": layers, "n_heads": heads}
    student = Classifier(DistilBertConfig(**{name: getattr(teacher.config, name) for name in inherited}, **sizes))
    big, small = teacher.distilbert.embeddings, student.distilbert.embeddings
    with torch.no_grad():
        words = big.word_embeddings.weight - big.word_embeddings.weight.mean(0)
        places = big.position_embeddings.weight - big.position_embeddings.weight.mean(0)
        _, axes = torch.linalg.eigh(words.T @ words)  # ascending eigenvalues: the principal axes come last
        words, places = words @ axes[:, -dim:], places @ axes[:, -dim:]
        scale = words.std()  # to unit size: Adam's steps have a fixed size too
        small.word_embeddings.weight.copy_(words / scale)
        small.position_embeddings.weight.copy_(places / scale)
    return student


def train(
    student: Classifier, ids: list[list[int]], soft: torch.Tensor, hard: torch.Tensor, args: argparse.Namespace
) -> None:
    """Fit the student to the teacher's logits `soft` [rows, labels] and the labels `hard` [rows], -100 for unknown."""
    rng = np.random.default_rng(args.seed)
    # Decay would shrink the vectors of words that the training text lacks, and nothing would pull them back.
    tables = [p for name, p in student.named_parameters() if "_embeddings" in name]
    others = [p for name, p in student.named_parameters() if "_embeddings" not in name]
    groups = [{"params": tables, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.01}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, fused=True)
    t = args.temperature
    student.train()
    for epoch in range(args.epochs):
        total, start = 0.0, time.monotonic()
        plan = batches(ids, args.batch_tokens, rng)
        for step, rows in enumerate(plan):
            done = (epoch + step / len(plan)) / args.epochs
            for group in optimizer.param_groups:
                group["lr"] = args.rate * min((done + 0.001) / 0.05, 1 - done)  # warm up, then down to nothing
            out = student(**padded(ids, rows)).logits
            teacher = F.softmax(soft[rows] / t, -1)
            loss = F.kl_div(F.log_softmax(out / t, -1), teacher, reduction="batchmean") * t * t
            if (hard[rows] >= 0).any():
                loss = (1 - args.hard) * loss + args.hard * F.cross_entropy(out, hard[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        log.info("epoch %d: loss %.4f, %.0f s", epoch + 1, total / len(plan), time.monotonic() - start)


def save(student: Classifier, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """A Hugging Face folder in float16 with vocab.txt (a third of tokenizer.json's size)."""
    out.mkdir(parents=True, exist_ok=True)
    student.half().save_pretrained(out)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (out / "vocab.txt").write_text("".join(word + "\n" for word, _ in words), encoding="utf-8")
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "mask", "pad", "sep", "unk")}
    settings = {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": True, "model_max_length": 512, **special}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def accuracy(folder: Path, rows: list[tuple[str, int]]) -> float:
    """Share of right labels of the saved model, computed in float32 from the float16 weights."""
    model = Classifier.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer([text for text, _ in rows], truncation=True)["input_ids"]
    return (logits(model, ids).argmax(-1) == torch.tensor([label for _, label in rows])).float().mean().item()


CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-classification
---

# A tiny DistilBERT for the sentiment of English sentences

{layers} layers, {dim} wide, {heads} heads, {words:,} uncased word pieces, {places} positions, float16. It is small
enough to live in a source tree, for demos and tests without a network. For real work take a larger model.

| data | rows | accuracy (float32 arithmetic) |
|---|---|---|
{results}

Made by `examples/distil_tiny.py` ({settings})
from a teacher with {teacher_layers} layers of {teacher_dim}: all-MiniLM-L6-v2 (Apache-2.0) rewritten as a DistilBERT
and fine-tuned on SST-2. Trained on the training sentences and phrases of SST-2 (Socher et al., 2013, film reviews);
none of that text is in this folder.

Known limits: it has seen short English film criticism and little else, at most 128 tokens at a time. Irony, negation
("not bad at all"), neutral texts and other languages are beyond it, and its scores are not calibrated.
"""


def write_card(out: Path, teacher: Classifier, results: list[tuple[str, int, float]], args: argparse.Namespace) -> None:
    """README.md of the model's folder, with the accuracies measured on the saved weights."""
    names = ("copies", "epochs", "batch_tokens", "rate", "temperature", "hard", "seed")
    big = teacher.config
    card = CARD.format(
        **vars(args) | {"words": big.vocab_size, "places": big.max_position_embeddings},
        results="\n".join(f"| {name} | {rows:,} | {share:.4f} |" for name, rows, share in results),
        settings=", ".join(f"{name} {getattr(args, name)}" for name in names),
        teacher_layers=big.n_layers,
        teacher_dim=big.dim,
    )
    (out / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--eval", type=Path, nargs="*", default=[], help="labelled files to report accuracy on")
    parser.add_argument("--cache", type=Path, help="folder for the teacher's answers")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--copies", type=int, default=1, help="altered copies of each training text")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--hard", type=float, default=0.2, help="weight of the true labels beside the teacher's")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    torch.manual_seed(args.seed)

    teacher = AutoModelForSequenceClassification.from_pretrained(args.teacher, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.teacher)
    rows = list(dict.fromkeys(read_tsv(args.train)))
    texts = [text for text, _ in rows]
    more = altered(texts, args.copies, tokenizer.mask_token, np.random.default_rng(args.seed))
    ids = tokenizer(texts + more, truncation=True, max_length=128)["input_ids"]
    hard = torch.tensor([label for _, label in rows] + [-100] * len(more))  # -100: cross_entropy leaves the row out
    start = time.monotonic()
    soft = cached_logits(teacher, ids, (args.teacher / "model.safetensors").read_bytes(), args.cache)
    log.info("%d texts answered by the teacher, %.0f s", len(ids), time.monotonic() - start)

    student = make_student(teacher, args.dim, args.layers, args.heads)
    train(student, ids, soft, hard, args)
    save(student, tokenizer, args.out)
    results = []
    for path in args.eval:
        dev = read_tsv(path)
        results.append((f"{path.parent.name}/{path.name}", len(dev), accuracy(args.out, dev)))
        log.info("%s, %d rows: accuracy %.4f", *results[-1])
    write_card(args.out, teacher, results, args)


if __name__ == "__main__":
    main()
