"""Real tokenizers against published test vectors: those that llama.cpp ships with its vocabularies.

python tests/bench/published_tokenizers.py DIR, where DIR is the folder `models` of llama.cpp's source: it holds
ggml-vocab-NAME.gguf, NAME.gguf.inp (texts) and NAME.gguf.out (the ids that the model's own tokenizer gives). Each
vocabulary is written as the tokenizer.json that its model has on the Hub and read back by checkpoints.load_tokenizer.
Needs the extra `real` (gguf).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import gguf

sys.path[0] = str(Path(__file__).parents[2])  # not this folder: its kernels.py is not the package
import checkpoints

CONTROL, USER = 3, 4  # GGUF's types of tokens that no merge makes
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
         r"\s+(?!\S)|\s+")


def cut(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}


PRE_TOKENIZERS = {  # vocabulary: the steps in its model's tokenizer.json
    "gpt-2": [GPT2],
    "mpt": [GPT2],
    "starcoder": [{"type": "Digits", "individual_digits": True}, GPT2],
    "refact": [{"type": "Digits", "individual_digits": True}, GPT2],
    "command-r": [{"type": "Digits", "individual_digits": True}, GPT2],
    "falcon": [{"type": "Punctuation", "behavior": "Contiguous"}, GPT2, {"type": "Digits", "individual_digits": False},
               cut("[0-9][0-9][0-9]")],
    "llama-bpe": [cut(WORDS), BYTES],
    "qwen2": [cut(WORDS.replace("{1,3}", "")), BYTES],
}


def tokenizer_json(file: Path, name: str) -> dict:
    meta = {key: value.contents() for key, value in gguf.GGUFReader(file).fields.items()}
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    return {
        "added_tokens": [{"id": i, "content": tokens[i]} for i, kind in enumerate(kinds) if kind in (CONTROL, USER)],
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[name]},
        "model": {"type": "BPE", "ignore_merges": name == "llama-bpe", "merges": meta["tokenizer.ggml.merges"],
                  "vocab": {token: i for i, token in enumerate(tokens)}},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    wrong = 0
    print("| vocabulary | tokens | texts | same ids | text comes back |\n|---|---|---|---|---|")
    for name in PRE_TOKENIZERS:
        file = folder / f"ggml-vocab-{name}.gguf"
        texts = Path(f"{file}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
        ids = [[int(i) for i in line.split()] for line in Path(f"{file}.out").read_text().split("\n")[: len(texts)]]
        with tempfile.TemporaryDirectory() as temporary:
            (Path(temporary) / "tokenizer.json").write_text(json.dumps(tokenizer_json(file, name)))
            tokenizer = checkpoints.load_tokenizer(temporary)
        same = sum(tokenizer.encode(t, special=False) == i for t, i in zip(texts, ids, strict=True))
        back = sum(tokenizer.decode(tokenizer.encode(t)) == t for t in texts)
        wrong += 2 * len(texts) - same - back
        print(f"| {name} | {tokenizer.vocab_size:,} | {len(texts)} | {same} | {back} |", flush=True)
    print("all agree" if not wrong else f"{wrong} do not agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
