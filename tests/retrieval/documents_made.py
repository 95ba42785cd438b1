"""PDF files and tiny text encoders that tests make themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

TOPICS = (
    ["The Amazon river carries more water", "than any other river on earth."],
    ["Net revenue of the company rose", "to four million dollars in 2023."],
    ["A neural network learns its weights", "by gradient descent on a loss."],
    ["Bake the bread for forty minutes", "until the crust is golden brown."],
)


# Seventy pages of two lines each, no two alike.
MANY = [[f"{TOPICS[i % 4][0]} {i}", TOPICS[i * 7 % 4][1]] for i in range(70)]


def write_pdf(path: Path, pages: Sequence[Sequence[str]], *, rotate: int = 0) -> Path:
    """Lines of text in Helvetica at (72, 720), (72, 690), ... on US letter paper."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"",
               b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]  # fmt: skip
    kids = []
    for lines in pages:
        text = "".join(f"BT /F1 18 Tf 72 {720 - 30 * i} Td ({t}) Tj ET\n"
                       for i, t in enumerate(lines)).encode()  # fmt: skip
        objects.append(b"<< /Length %d >>\nstream\n%sendstream" % (len(text), text))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Rotate %d /Contents %d 0 R"
            b" /Resources << /Font << /F1 3 0 R >> >> >>" % (rotate, len(objects))
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    out = b"%PDF-1.4\n"
    places = []
    for i, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (i, body)
    table = b"".join(b"%010d 00000 n \n" % p for p in places)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    out += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1, out.rindex(b"xref\n0"),
    )  # fmt: skip
    path.write_bytes(out)
    return path


def write_tiny_bert(folder: Path, *, positions: int = 40) -> Path:
    """A BERT of 3 layers, 4 heads, 32 dimensions, random weights, and a vocabulary of letters."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,-"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "river", "revenue"]
    vocabulary += [*letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=positions, initializer_range=0.5,
        )  # fmt: skip
        BertModel(config).save_pretrained(folder)
    return folder
