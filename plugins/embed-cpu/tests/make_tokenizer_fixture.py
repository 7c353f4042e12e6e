"""Writes data/tokenizer.json: what the `tokenizers` library makes of texts that are hard to tokenize.

    pip install tokenizers==0.23.3 && python make_tokenizer_fixture.py

`texts` holds [text, token ids] with [UNK] left out, as the model does. `characters` holds
[first, digest] for every 4096 characters, but for the planes that Unicode leaves empty: FNV-1a over
the ids of "a{char}b", each followed by 0xffffffff.
"""

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

TESTS = Path(__file__).parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

pieces = (TESTS.parent / "model/potion-base-8M-int8/vocab.txt").read_text().rstrip("\n").split("\n")
tokenizer = Tokenizer(WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
tokenizer.normalizer = BertNormalizer()
tokenizer.pre_tokenizer = BertPreTokenizer()
tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
unknown = pieces.index("[UNK]")

HAND = """
Hello, World!|naïve café résumé Ångström façade|e\u0301 a\u0308\u0323 o\u0302\u0301 n\u0303|I\u0307stanbul İstanbul ıssız IĞDIR
Straße STRASSE ẞ ß|ﬁne ﬂow ﬀ ﬃ ﬄ ﬅ|Ǆ ǅ ǆ Ǉ ǈ|ΑΣΟΣ Σίσυφος ὈΔΥΣΣΕΎΣ ᾳ ᾼ|Привет, мир! Ёлка ёжик Й й ЙОД|Українська мова їжак ґанок
日本語のテキスト|中文分词测试。|한국어 문장 각|漢字かな交じり文、カタカナ。|豈 更 車 賈|𠀀𠀁 𪜀 丽|东京Tokyo2020|a中b国c
مرحبا بالعالم|اَلْعَرَبِيَّةُ|שָׁלוֹם עוֹלָם|हिन्दी में पाठ|ไทยภาษา|தமிழ்|বাংলা|ქართული ენა ᲥᲐᲠᲗᲣᲚᲘ|አማርኛ|Հայերեն
😀😃 emoji 👍🏽|👨‍👩‍👧‍👦 family|🏳️‍🌈 flag 🇩🇪|❤️ heart ❤|zero\u200bwidth\u200djoin\u200cer\ufeffbom|soft\u00adhyphen|a\u2028b\u2029c|non\u00a0breaking\u3000ideographic\u2003em
tab\tnew\nline\rreturn\r\nboth|bell\x07in\x00null\x7fdel\x1besc|vertical\x0btab\x0cfeed\x85nel|\ufffdreplacement\ufffd|\u202ertl\u202c|private\ue000use
it's don't WE'LL o'clock|“smart” ‘quotes’ – dash — em… «guillemets»|3.14159 1,000,000 1e-9 0xDEADBEEF 50% $9.99 €5 £3 ¥7 ₽9|½ ¼ x² x₂ ⅷ Ⅷ ① №5 ™ ℃ K Å
C++ C# F# .NET node.js foo_bar fooBar FOO_BAR|fn main() { println!("{}", x[0]); }|https://example.com/a/b?c=d&e=f#g|user.name+tag@mail.example.org|/usr/lib/x86_64-linux-gnu/libc.so.6|C:\\Windows\\System32|<div class="a">&nbsp;</div>|a=b+c*d-e/f^g~h`i
[CLS] text [SEP] [MASK] [PAD] [UNK]|[cls] [Cls] [ CLS ] [CLS|[[CLS]]|a[SEP]b|[CLS][SEP]|\u0301[CLS]\u0301|é[MASK]é|[MA\u200bSK]|##ing ## #ing ##a
antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis|supercalifragilisticexpialidocious|internationalization telecommunications responsibilities interdisciplinary unconstitutional|misunderstandings entrepreneurships telecommunicationsresponsibilities|qwrtpsdfghjklzxcvbnm
\u302e\U0001d165 \U0001d165\u302e a\x01\u302e\x02\U0001d165|\u0f71\u0f72\u0f74 \u0f73|각 가 힣 ᄀ ᅡ ᆨ|ｆｕｌｌ　ｗｉｄｔｈ １２３ ！？|\u0344\u0345 \u1fbc|\u2126 \u212a \u212b|\u037e \u0387 \u1fef|\u2000\u2001
""".strip("\n").replace("\n", "|").split("|")


def texts():
    yield from ["", " ", "   ", "\n", "\u0301", "\u200b", "\x00", "a", "A", "é", "中", "!", "[", "]", "#", "0"]
    yield from HAND
    for length in (15, 16, 17, 18, 19, 31, 32, 33, 98, 99, 100, 101, 102, 200, 400, 401):
        yield "a" * length
        yield "É" * length
        yield "ab" * (length // 2) + " end"
        yield "я" * length + "!" + "я" * length
        yield "x" + "\u0301" * length + "y"
        yield "한" * (length // 3)
        yield "中" * length
    draw = random.Random(7)
    alphabets = [
        "abcdefghijklmnopqrstuvwxyz",
        "abcXYZ019 .,-'_/\\[]{}()<>@#$%^&*+=~`|\"?!;: \t\n\r\x00\x07\x1f\x7f",
        "aeiouéèêëàâäôöùûüçñåøæœßŁłŞşİıĞğĐđŸÿ ",
        "абвгдежзийклмнопрстуфхцчшщъыьэюяЁЙёй ",
        "αβγδεζηθικλμνξοπρστυφχψωΆΈΉΊΌΎΏϊϋΐΰς ",
        "a\u0300\u0301\u0308\u0323\u0327\u0345\u05b0\u064b\u0f71\u302e\u302a\U0001d165\u093c ",
        "a\u200b\u200c\u200d\u2060\ufeff\u00ad\u00a0\u2028\u3000\u1680\u180e\u0085 ",
        "一丁七万三上下不中国人大日本語㐀豈𠀀。、「」あいうアイウ ",
        "가각간한글각 ",
        "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئ ًٌٍَُِّْ،؟ ",
        "😀👍🏽👨‍👩‍👧❤️🇩🇪✅★☆→←∑∫≈ ",
    ]
    for _ in range(500):
        letters = draw.choice(alphabets)
        yield "".join(draw.choice(letters) for _ in range(draw.randint(1, 40)))
    for _ in range(400):
        mixed = draw.choice(alphabets) + draw.choice(alphabets)
        yield "".join(draw.choice(mixed) for _ in range(draw.randint(1, 40)))
    for _ in range(300):
        codes = (draw.choice((draw.randrange(0x80, 0x3000), draw.randrange(0x20, 0x11000))) for _ in range(12))
        yield "".join(chr(code) if not 0xD800 <= code < 0xE000 else "s" for code in codes)
    plain = [piece.removeprefix("##") for piece in pieces]
    for _ in range(500):
        glue = draw.choice(["", "", " ", "-", "\u0301", "\u200b"])
        words = glue.join(draw.choice(plain) for _ in range(draw.randint(1, 6)))
        yield draw.choice([str, str.upper, str.title])(words)


def ids(text):
    return [id for id in tokenizer.encode(text, add_special_tokens=False).ids if id != unknown]


def digest(start):
    state = 0xCBF29CE484222325
    for code in range(start, start + 4096):
        if 0xD800 <= code < 0xE000:
            continue
        for id in [*ids(f"a{chr(code)}b"), 0xFFFFFFFF]:
            for byte in id.to_bytes(4, "little"):
                state = (state ^ byte) * 0x100000001B3 % 2**64
    return f"{state:016x}"


rows = ",\n".join(json.dumps([text, ids(text)], ensure_ascii=True, separators=(",", ":")) for text in dict.fromkeys(texts()))
digests = json.dumps([[start, digest(start)] for start in [*range(0, 0x33000, 4096), 0xE0000]])
(TESTS / "data/tokenizer.json").write_text(f'{{"characters":{digests},\n"texts":[\n{rows}\n]}}\n')
