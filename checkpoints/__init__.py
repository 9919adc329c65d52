"""What lies on disk: reading and writing models, tokenizers and adapters. The small weights that ship lie beside."""

from checkpoints.adapters import load_adapter, save_adapter
from checkpoints.tokenizer import load_tokenizer
from checkpoints.weights import describe, export_merged, load_model, save_model

__all__ = ["describe", "export_merged", "load_adapter", "load_model", "load_tokenizer", "save_adapter", "save_model"]
