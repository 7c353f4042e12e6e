"""Writes data/rerankers: tiny cross-encoders with random weights, and what transformers makes of some pairs.

    pip install torch transformers tokenizers safetensors && python make_reranker_fixtures.py

`expected.json` holds `{"items": [{"query", "passage", "token_ids", "score"}]}`, where the score is the logistic
function of the logit, computed in float64.
"""

import json
import shutil
from pathlib import Path

import torch
import transformers
from make_architecture_fixtures import bert_sizes, bert_tokenizer, dump, unigram_tokenizer
from safetensors.torch import save_file
from tokenizers import processors

OUT = Path(__file__).parent / "data/rerankers"
PAIRS = [
    ("cat on the mat", "The cat sat on the mat."),
    ("cat on the mat", "database index and the weather in spring"),
    ("weather", "the weather in spring " * 30),
    ("one two three " * 30, "ten"),
    ("hello", ""),
    ("Привет", "naïve café, 3.14 %"),
]


def write(name, model, tokenizer, limit):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            random = torch.randn(tensor.shape, generator=generator)
            scale = 0.7 if "embed" in key else 1.5 / tensor.shape[-1] ** 0.5
            is_gain = "norm" in key.lower() and key.endswith("weight")
            tensor.copy_(random * scale if tensor.dim() > 1 else 0.3 * random + is_gain)
    weights = {key: value.contiguous() for key, value in model.state_dict().items() if "position_ids" not in key}
    save_file(weights, folder / "model.safetensors")
    config = json.loads(model.config.to_json_string(use_diff=False))
    drop = [key for key in config if key.startswith("_") or key in ("dtype", "label2id")]
    config = {key: value for key, value in config.items() if key not in drop}
    dump(folder / "config.json", {**config, "architectures": [type(model).__name__]})
    dump(folder / "tokenizer_config.json", {"model_max_length": limit})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)

    model = model.double().eval()
    tokenizer.enable_truncation(limit)
    items = []
    for query, passage in PAIRS:
        encoding = tokenizer.encode(query, passage)
        with torch.no_grad():
            logit = model(torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids])).logits
        score = float(torch.sigmoid(logit)[0, 0])
        items.append({"query": query, "passage": passage, "token_ids": encoding.ids, "score": float(f"{score:.8f}")})
    dump(folder / "expected.json", {"items": items})


def main():
    tokenizer = bert_tokenizer()
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ["[CLS]", "[SEP]"]],
    )
    config = transformers.BertConfig(**bert_sizes(tokenizer.get_vocab_size()), num_labels=1)
    write("bert", transformers.BertForSequenceClassification(config), tokenizer, 48)

    tokenizer = unigram_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    sizes = bert_sizes(tokenizer.get_vocab_size(), type_vocab_size=1, pad_token_id=1)
    config = transformers.XLMRobertaConfig(**sizes, num_labels=1)
    write("xlm-roberta", transformers.XLMRobertaForSequenceClassification(config), tokenizer, 78)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
