"""How far training has taken a model from its base, and how sure it is by now: on rationales that it wrote itself.

    drift     log p(rationale | question) with adapters minus the same without them, in nats a token
    entropy   of the model's distribution over the next token, full softmax at temperature 1, in nats; mean over tokens

Both stand behind the question as it is trained on. It samples nothing and writes no weight: adapters are switched off
for a while (star/lora), and no sampler sees a change.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from star import lora, prompts
from star.batch import micro_batches
from star.decoder import Decoder
from star.device import widest
from star.problem import Example, Generation, Problem
from star.ranks import ONE, Ranks
from star.tasks import Task

MOST, FEWEST, EACH = 16, 4, 32  # rationales: one of 32, but 4 at least: under 1 % of what an iteration computes
LOGITS = 256  # positions whose logits exist at a time


def drift(model: Decoder, examples: Sequence[Example], ranks: Ranks = ONE) -> dict[str, float]:
    """{"entropy", "drift"} of a model with adapters, over all tokens behind the prompts together; not rounded."""
    mine = ranks.mine(examples)
    learned, entropy = measured(model, mine)
    with lora.off(model):
        before, _ = measured(model, mine)
    learned, entropy, before = map(sum, zip(*ranks.gather([learned, entropy, before]), strict=True))
    n = sum(len(e.tokens) - e.n_prompt for e in examples)
    return {"entropy": entropy / n, "drift": (learned - before) / n}


@torch.no_grad()
def measured(model: Decoder, examples: Sequence[Example]) -> tuple[float, float]:
    """Sums over the tokens behind the prompts: (log-probability, entropy of the distribution they are drawn from)."""
    wide = widest(model.device)
    logprob, entropy = torch.zeros(2, dtype=wide, device=model.device)
    for batch in micro_batches(examples, 2048 if model.device.type == "cpu" else 8192, model.device):
        pieces = zip(batch.hidden(model).split(LOGITS), batch.targets.split(LOGITS), strict=True)
        for hidden, targets in pieces:
            logp = F.log_softmax(model.logits(hidden), dim=-1)  # (n, V)
            logprob += logp.gather(1, targets[:, None]).to(wide).sum()
            entropy += torch.special.entr(logp.exp()).to(wide).sum()  # of 0: 0
    return logprob.item(), entropy.item()


def habits(model: Decoder, tokenizer, task: Task, problems: Sequence[Problem], generations: Sequence[Generation],
           few_shot: bool, ranks: Ranks = ONE) -> dict[str, float | None]:
    """`drift` on some of these rationales, one a problem and in their order, spread evenly over them; 4 digits.

    None where a number is not finite: JSON has no word for it.
    """
    n = min(len(problems), MOST, max(FEWEST, len(problems) // EACH))
    some = [i * len(problems) // n for i in range(n)]
    examples = []
    for problem, g in ((problems[i], generations[i]) for i in some):
        prompt = prompts.encode(task, problem, tokenizer, few_shot=few_shot)
        examples.append(Example((*prompt, *g.tokens), len(prompt)))
    found = drift(model, examples, ranks)
    return {name: round(x, 4) + 0.0 if abs(x) < float("inf") else None for name, x in found.items()}
