"""What lies on disk: reading and writing models, tokenizers and adapters. The small weights that ship lie beside."""

from pathlib import Path

from checkpoints.adapters import load_adapter, save_adapter
from checkpoints.tokenizer import load_tokenizer
from checkpoints.weights import describe, export_merged, fill, load_model, outline, save_model

SHIPPED = Path(__file__).parent / "tiny-adder"

__all__ = [
    "SHIPPED", "describe", "export_merged", "fill", "load_adapter", "load_model", "load_tokenizer", "outline",
    "save_adapter", "save_model",
]
