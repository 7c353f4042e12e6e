"""Writes data/architectures: one tiny model with random weights a network that backends run, and what
the reference implementation makes of some texts.

    pip install torch transformers tokenizers safetensors && python make_architecture_fixtures.py

Each folder is in Hugging Face layout. `expected.json` beside it holds
`{"items": [{"text", "role", "token_ids", "embedding"}]}`: tokens with prefix and special tokens, cut
to the limit, and the pooled unit vector, computed in float64. Norms and biases are random too, so that
none can be left out unseen. Sizes are odd on purpose.
"""

import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

OUT = Path(__file__).parent / "data/architectures"
TEXTS = [
    "hello world",
    "The cat sat on the mat.",
    "a",
    "database index and the weather in spring",
    "naïve café, 3.14 % of UPPER and lower",
    "Привет, мир!",
    "one two three four five six seven eight nine ten",
    "many words " * 40,
]
QUERY, PASSAGE = "query: ", "passage: "

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = """the of and to in is it that for on with as at by cat mat sat hello world data base index weather
spring one two three four five six seven eight nine ten many word query passage""".split()


def word_pieces(special):
    pieces = special + list(LETTERS + "0123456789.,%!:") + WORDS
    pieces += ["##" + letter for letter in LETTERS + "0123456789"] + ["##ing"]
    return {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}


def word_piece(special, cls, sep, unk):
    vocab = word_pieces(special)
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])]
    )
    return tokenizer


def bert_tokenizer():
    return word_piece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS]", "[SEP]", "[UNK]")


def mpnet_tokenizer():
    return word_piece(["<s>", "<pad>", "</s>", "[UNK]"], "<s>", "</s>", "[UNK]")


def unigram_tokenizer():
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = LETTERS + LETTERS.upper() + "0123456789.,%!:ПриветмЁёïé"
    pieces = [(token, 0.0) for token in special] + [("▁", -3.0)]
    pieces += [("▁" + word, -4.0 - id * 0.05) for id, word in enumerate(WORDS)]
    pieces += [(letter, -8.0 - id * 0.01) for id, letter in enumerate(dict.fromkeys(letters))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def byte_pair_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: id for id, piece in enumerate(alphabet)}
    merges = []
    for word in WORDS:
        left = "Ġ"
        for letter in word:
            if (left, letter) not in merges and len(vocab) < 300:
                merges.append((left, letter))
                vocab.setdefault(left + letter, len(vocab))
            if left + letter not in vocab:
                break
            left += letter
    end = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    return tokenizer


def bert_sizes(vocab, **more):
    return dict(
        vocab_size=vocab,
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=72,
        max_position_embeddings=80,
        layer_norm_eps=1e-12,
        **more,
    )


def write(name, model, tokenizer, *, pooling, limit, prefixes=None, dtype=torch.float32, before=""):
    """Writes one folder. `before` goes before the names of all tensors, as some classes save them."""
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "1_Pooling").mkdir(parents=True)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            random = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                # Products keep the size of what goes in, attention and activations see their whole range.
                random = random * (1.5 / tensor.shape[-1] ** 0.5 if "embed" not in key else 0.7)
            elif "norm" in key.lower() and key.endswith("weight"):
                random = 1 + 0.3 * random
            else:
                random = 0.3 * random
            tensor.copy_(random.to(dtype))
    save_file(
        {before + key: value.to(dtype).contiguous() for key, value in model.state_dict().items()
         if "position_ids" not in key and "pooler" not in key},
        folder / "model.safetensors",
    )
    config = json.loads(model.config.to_json_string(use_diff=False))
    drop = [key for key in config if key.startswith("_") or key in ("dtype", "id2label", "label2id")]
    config = {key: value for key, value in config.items() if key not in drop}
    dump(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    modules = [
        {"idx": int(id), "name": id, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for id, path, kind in modules
    ]
    dump(folder / "modules.json", modules)
    flags = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    dump(
        folder / "1_Pooling/config.json",
        {
            "word_embedding_dimension": model.config.hidden_size,
            **{f"pooling_mode_{flag}": mode == pooling for mode, flag in flags.items()},
        },
    )
    dump(folder / "sentence_bert_config.json", {"max_seq_length": limit})
    if prefixes:
        dump(folder / "config_sentence_transformers.json", {"prompts": prefixes})

    model = model.double().eval()
    items = []
    tokenizer.enable_truncation(limit)
    for role in ["query", "passage"]:
        before_text = (prefixes or {}).get(role, "")
        for text in TEXTS:
            if role == "query" and not before_text:
                continue
            ids = tokenizer.encode(before_text + text).ids
            with torch.no_grad():
                states = model(torch.tensor([ids])).last_hidden_state[0]
            pooled = {"mean": states.mean(0), "cls": states[0], "lasttoken": states[-1]}[pooling]
            vector = torch.nn.functional.normalize(pooled, dim=0)
            items.append(
                {"text": text, "role": role, "token_ids": ids, "embedding": [float(f"{v:.8f}") for v in vector]}
            )
    (folder / "expected.json").write_text(
        '{"items": [\n' + ",\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "\n]}\n"
    )


def dump(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def main():
    prefixes = {"query": QUERY, "passage": PASSAGE}
    tokenizer = bert_tokenizer()
    config = transformers.BertConfig(**bert_sizes(tokenizer.get_vocab_size()))
    write("bert", transformers.BertModel(config, add_pooling_layer=False), tokenizer, pooling="mean", limit=48)

    tokenizer = bert_tokenizer()
    config = transformers.BertConfig(**bert_sizes(tokenizer.get_vocab_size(), hidden_act="gelu_new"))
    model = transformers.BertModel(config, add_pooling_layer=False)
    write("bert-cls-f16", model, tokenizer, pooling="cls", limit=64, dtype=torch.float16, before="bert.",
          prefixes={"query": "Represent this: "})

    tokenizer = unigram_tokenizer()
    config = transformers.XLMRobertaConfig(
        **bert_sizes(tokenizer.get_vocab_size(), type_vocab_size=1, pad_token_id=1)
    )
    model = transformers.XLMRobertaModel(config, add_pooling_layer=False)
    write("xlm-roberta", model, tokenizer, pooling="mean", limit=78, prefixes=prefixes)

    tokenizer = mpnet_tokenizer()
    config = transformers.MPNetConfig(**bert_sizes(tokenizer.get_vocab_size(), pad_token_id=1))
    model = transformers.MPNetModel(config, add_pooling_layer=False)
    write("mpnet", model, tokenizer, pooling="mean", limit=78)

    tokenizer = byte_pair_tokenizer()
    config = transformers.Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=56,
        max_position_embeddings=256,
        rope_theta=1e6,
        tie_word_embeddings=True,
    )
    write("qwen3", transformers.Qwen3Model(config), tokenizer, pooling="lasttoken", limit=200,
          dtype=torch.bfloat16, prefixes={"query": "Instruct: find\nQuery:"})


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
