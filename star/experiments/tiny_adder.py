"""Makes the model that ships: a decoder of half a million parameters that adds 1-2 digits and barely knows of 3-5.

    python -m star.experiments.tiny_adder --out runs/tiny-adder
    python -m star.experiments.tiny_adder --second --out runs/tiny-adder-2

It stands for the paper's pretrained M *with its few-shot prompts*: so small a model cannot learn from examples in its
context, so it has seen them in pretraining. Of 3, 4 and 5 digits it sees the same few worked sums again and again: 3
without and 100 with a hint for each length. That asymmetry makes "explain a given answer" easier than "solve", which
is what rationalization needs. The held-out sums of star/tasks/arithmetic are never shown. A seed decides everything.

--second makes another generator for a pool, of the same form and size, that fails elsewhere: it has seen fresh sums of
1-5 digits, but only those with at most one carry, and no hints.
"""

import io
import random
import sys
from pathlib import Path

import sentencepiece
import torch
from tqdm import tqdm

import checkpoints
from checkpoints.families import decoder_config
from checkpoints.files import write_atomically
from kernels.cross_entropy import linear_cross_entropy
from star.batch import micro_batches
from star.config import StarConfig
from star.decoder import Decoder, Linear
from star.evaluate import by_group
from star.finetune import lr_factor
from star.problem import Example, Problem
from star.rollout import Rollout
from star.run.flags import Parser, command
from star.sampler import Sampler
from star.tasks.arithmetic import Arithmetic, split

STEPS, BATCH, LR, WARMUP = 800, 64, 2e-3, 50
UNAIDED, HINTED = 3, 100  # worked sums shown of each of 3, 4, 5 digits
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 336,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "attention_bias": False, "mlp_bias": False, "bos_token_id": None, "eos_token_id": 1, "torch_dtype": "float32",
}
CHARACTERS = "\n 0123456789+=Chint"


def train_tokenizer(folder: Path) -> None:
    """A SentencePiece model of one token a character: id 0 unknown, id 1 the end; text is taken as it stands."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CHARACTERS.replace("\n", "")), model_writer=model, model_type="char",
        vocab_size=len(CHARACTERS) + 2, user_defined_symbols=["\n"], unk_id=0, eos_id=1, bos_id=-1, pad_id=-1,
        character_coverage=1.0, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )
    write_atomically(folder / "tokenizer.model", model.getvalue())


def build(vocab: int, seed: int, config: dict = CONFIG) -> Decoder:
    """A fresh decoder: linears N(0, 1/in), those that write into the residual stream smaller by sqrt(2 layers)."""
    model = Decoder(decoder_config(config | {"vocab_size": vocab})[0])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, Linear):
                std = 0.02 if path == "embed_tokens" else module.weight.shape[1] ** -0.5
                if path.endswith(("o_proj", "down_proj")):
                    std /= (2 * model.config.n_layers) ** 0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * std)
    return model


class Curriculum:
    """Draws the pretraining examples: 60 % fresh sums of 1-2 digits, half of them hinted; 40 % the few worked ones."""

    def __init__(self, task: Arithmetic, tokenizer, seed: int):
        self.task, self.tokenizer, self.rng = task, tokenizer, random.Random(seed)
        self.short = {n: split(n)[0] for n in (1, 2)}
        self.worked = [(p, i >= UNAIDED) for n in (3, 4, 5)
                       for i, p in enumerate(self.rng.sample(split(n)[0], UNAIDED + HINTED))]

    def next(self) -> Example:
        if self.rng.random() < 0.4:
            return self.example(*self.rng.choice(self.worked))
        problem = self.rng.choice(self.short[1 if self.rng.random() < 0.3 else 2])
        return self.example(problem, self.rng.random() < 0.5)

    def example(self, problem: Problem, hinted: bool) -> Example:
        """Here, and only here, is a hinted prompt trained on: it is what the paper's hinted few-shot text teaches."""
        prompt = self.tokenizer.encode(self.task.hinted(problem) if hinted else self.task.question(problem))
        rationale = self.tokenizer.encode(self.task.gold(problem))
        return Example((*prompt, *rationale, self.tokenizer.eos_ids[0]), len(prompt))


class FewCarries(Curriculum):
    """Draws the second generator's examples: training sums of 1-5 digits with at most one carry, lengths alike."""

    def __init__(self, task: Arithmetic, tokenizer, seed: int):
        self.task, self.tokenizer, self.rng = task, tokenizer, random.Random(seed)
        self.sums = [[p for p in split(n)[0] if self.carries(p) <= 1] for n in range(1, 6)]

    def carries(self, problem: Problem) -> int:
        return self.task.worked(problem).rpartition("\n")[0].count("=1")  # in the columns, not in the answer's line

    def next(self) -> Example:
        return self.example(self.rng.choice(self.rng.choice(self.sums)), hinted=False)


def pretrain(model: Decoder, curriculum: Curriculum, steps: int) -> None:
    """All weights, AdamW, loss on the rationale and its end."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    weight, bias = model.head()
    for step in tqdm(range(steps), desc="pretrain", unit="step", disable=None):
        batch = [curriculum.next() for _ in range(BATCH)]
        n_targets = sum(len(e.tokens) - e.n_prompt for e in batch)
        for b in micro_batches(batch, 2048, model.device):
            (linear_cross_entropy(b.hidden(model), weight, b.targets, bias) / n_targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * lr_factor(step, steps, WARMUP, "linear")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def report(model: Decoder, tokenizer, task: Arithmetic) -> None:
    """Held-out accuracy by length: without hint, with it, and with every step right too."""
    rollout = Rollout(Sampler(model, slots=512, max_len=256, tokenizer=tokenizer), tokenizer, task, StarConfig())
    print("held-out %        " + "".join(f"{g:>9}" for g in by_group(task.heldout, {p.id: 0 for p in task.heldout})))
    for label, phase in (("without hint", "generate"), ("with hint", "rationalize")):
        judged = rollout.complete(1, phase, task.heldout)
        right = {g.problem: float(g.kept) for g in judged}
        steps = {g.problem: float(g.kept and g.steps_right is True) for g in judged}
        for name, hits in ((label, right), ("  every step too", steps)):
            shares = (100 * share for share, _ in by_group(task.heldout, hits).values())
            print(f"{name:18}" + "".join(f"{s:9.1f}" for s in shares))


def begin(folder: Path):
    """Make the folder and the tokenizer in it, which is returned. FileExistsError if something is there already."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty: give another --out")
    torch.set_num_threads(1)  # more threads add in another order: the same seed would give other weights
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(folder)
    return checkpoints.load_tokenizer(folder)


def compare(folder: Path, name: str) -> None:
    """Say whether the weights in the folder are those that ship under this name."""
    shipped = checkpoints.SHIPPED.with_name(name) / "model.safetensors"
    if shipped.is_file():
        same = shipped.read_bytes() == (folder / "model.safetensors").read_bytes()
        print(f"{folder}: {'byte for byte the model that ships' if same else 'differs from the model that ships'}")


@command
def main(argv: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, help="folder to write, new or empty [runs/tiny-adder or -2]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--second", action="store_true", help="the second generator, of sums with at most one carry")
    args = parser.parse_args(argv)
    name, curriculum = ("tiny-adder-2", FewCarries) if args.second else ("tiny-adder", Curriculum)
    out = args.out or Path("runs") / name
    tokenizer = begin(out)
    task = Arithmetic(range(1, 6))
    model = build(tokenizer.vocab_size, args.seed)
    pretrain(model, curriculum(task, tokenizer, args.seed), STEPS)
    checkpoints.save_model(model, out, CONFIG | {"vocab_size": tokenizer.vocab_size})
    report(model, tokenizer, task)
    compare(out, name)


if __name__ == "__main__":
    sys.exit(main())
