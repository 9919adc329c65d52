"""Folders with a chat template in the style of a published one, of tests/golden/chat: a small tokenizer, its special
tokens, the template."""

import json
import shutil

from conftest import GOLDEN

STYLES = json.loads((GOLDEN / "chat" / "styles.json").read_text(encoding="utf-8"))
OF_SP = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def entry(given):
    """An added token: a special one's text, or [text, flags that are set]."""
    text, *flags = ([given, "special"] if isinstance(given, str) else given)
    return {"content": text} | {f: f in flags for f in ("special", "lstrip", "rstrip", "normalized", "single_word")}


def write(path, data):
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def style_folder(name, folder):
    """The style's folder. Byte-level ones have the pieces of tok_llama3, which are not Llama 3's."""
    style = STYLES[name]
    shutil.copy(GOLDEN / "chat" / f"{name}.jinja", folder / "chat_template.jinja")
    settings = {k: v for k, v in style.items() if k.endswith("_token") or k == "legacy"}
    if "pieces" in style:
        shutil.copy(GOLDEN / style["pieces"], folder / "tokenizer.model")
        kind = "GemmaTokenizer" if "gemma" in style["pieces"] else "LlamaTokenizer"
        settings = {"tokenizer_class": kind, "add_bos_token": True} | OF_SP | settings
        settings |= {"added_tokens_decoder": {i: entry(t) for i, t in style.get("decoder", {}).items()}}
    else:
        data = json.loads((GOLDEN / "tok_llama3" / "tokenizer.json").read_text(encoding="utf-8"))
        data["added_tokens"] = [entry(t) | {"id": 443 + i} for i, t in enumerate(style["added"])]
        bos = style.get("before")
        data["post_processor"] = bos and {
            "type": "TemplateProcessing", "pair": [], "single": [
                {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [443], "tokens": [bos]}}}
        write(folder / "tokenizer.json", data)
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    write(folder / "tokenizer_config.json", settings)
    return folder
