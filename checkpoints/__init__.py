"""What lies on disk: models, judges, tokenizers and adapters, read and written. Small weights that ship lie beside."""

from pathlib import Path

from checkpoints.adapters import load_adapter, save_adapter
from checkpoints.reward import fill_reward_model, load_reward_model, outline_reward_model, save_reward_model
from checkpoints.tokenizer import load_tokenizer
from checkpoints.weights import describe, export_merged, fill, load_model, outline, save_model

SHIPPED = Path(__file__).parent / "tiny-adder"

__all__ = [
    "SHIPPED", "describe", "export_merged", "fill", "fill_reward_model", "load_adapter", "load_model",
    "load_reward_model", "load_tokenizer", "outline", "outline_reward_model", "save_adapter", "save_model",
    "save_reward_model",
]
