"""Writes src/tokenizer/classes.rs: how `tokenizers` treats each character of an uncased BERT model.

Its tables are those of an old Unicode version. The library itself is asked, character by character,
so that ours are the same.

    pip install tokenizers==0.23.3 && python make_character_classes.py
"""

from pathlib import Path

from tokenizers import __version__
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer


def only(**step):
    steps = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    return BertNormalizer(**{**steps, **step}).normalize_str


clean, space_out, strip = only(clean_text=True), only(handle_chinese_chars=True), only(strip_accents=True)
split = BertPreTokenizer().pre_tokenize_str


def class_of(char):
    cleaned = clean(char)
    if cleaned == "":
        return "Removed"
    if cleaned == " ":
        return "Space"
    if space_out(char) == f" {char} ":
        return "Ideograph"
    if strip(char) == "":
        return "Mark"
    if len(split(f"a{char}b")) == 3:
        return "Punctuation"
    return "Word"


runs = []
for code in range(0x110000):
    # A surrogate is no character; it extends the run before it.
    name = runs[-1][1] if 0xD800 <= code < 0xE000 else class_of(chr(code))
    if not runs or runs[-1][1] != name:
        runs.append((code, name))

lines = [
    "// Written by tests/make_character_classes.py; do not edit.",
    f"// The classes of `tokenizers` {__version__}.",
    "use super::unicode::Class::{self, Ideograph as I, Mark as M, Punctuation as P, Removed as R, Space as S, Word as W};",
    "",
    "/// The first character of each run of characters of one class, ascending.",
    "#[rustfmt::skip]",
    f"pub(super) const RUNS: [(u32, Class); {len(runs)}] = [",
]
cells = [f"(0x{code:x}, {name[0]})," for code, name in runs]
lines += ["    " + " ".join(cells[at : at + 8]) for at in range(0, len(cells), 8)]
lines.append("];")
(Path(__file__).parent.parent / "src/tokenizer/classes.rs").write_text("\n".join(lines) + "\n")
