"""Judges: heads of every kind against the reference's numbers and plain.py, what a folder may say, texts to rows."""

import json
import math

import plain
import pytest
import torch
from conftest import GOLDEN, SHIPPED, random_decoder, refused, stirred
from safetensors.torch import load_file, save_file
from test_chat import CHATML
from test_families import GOLDENS, read

import checkpoints
from checkpoints import load_reward_model, save_reward_model
from checkpoints.chat import load_chat
from checkpoints.files import write_shards
from star.problem import Example
from star.reward import SYSTEM, WEIGHTS, Judge, Likelihood, RewardModel, choose_weights, read_at, split_turns

REWARDS = GOLDEN / "rewards"
FIVE = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
NINE = ["quality", "toxicity", "humor", "creativity", *FIVE]


def noise(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_rows(vocab=23, lengths=(9, 30, 1, 12, 29, 11, 4)):
    g = torch.Generator().manual_seed(0)
    return [torch.randint(0, vocab, (n,), generator=g).tolist() for n in lengths]


def folder_of(path, name="rm_llama_1", tensors=dict, **keys):
    """A copy of a golden judge with other keys in config.json and other tensors; a key that is None is left out."""
    config, held = read(REWARDS / name)
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({k: v for k, v in (config | keys).items() if v is not None}))
    save_file(tensors(held), path / "model.safetensors")
    return path


def headed(width, bias=False):
    """The tensors with a head of this width."""
    def change(held):
        new = {"score.weight": noise(width, width, held["score.weight"].shape[1])}
        return held | new | ({"score.bias": noise(1, width)} if bias else {})

    return change


def small_judge(labels=("a", "b"), **fields):
    model = random_decoder(dtype=torch.float32, max_pos=64)
    return RewardModel(model, noise(1, len(labels), 24), list(labels), noise(2, len(labels)), **fields)


@pytest.mark.parametrize("name", sorted(p.name for p in REWARDS.iterdir()))
@pytest.mark.parametrize("config", ["config.json", "config_hub.json"])
def test_goldens(name, config, tmp_path):
    """Every row of every file, all together: alone, padded on the right and, the pads taken away, on the left."""
    folder = folder_of(tmp_path / name, name)
    (folder / "config.json").write_bytes((REWARDS / name / config).read_bytes())
    judge, golden = load_reward_model(folder), load_file(REWARDS / name / "golden.safetensors")
    rows, wanted = [], []
    for kind in ("input", "right", "left"):
        if kind + "_ids" in golden:
            ids = golden[kind + "_ids"]
            mask = golden.get(kind + "_mask", torch.ones_like(ids)).bool()
            stripped = [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)]
            padded = ids.tolist() if kind == "right" else stripped
            wanted += [golden["scores" if kind == "input" else kind + "_scores"]] * 2
            rows += [*stripped, *padded]
    found = judge.score(rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.cat(wanted), atol=1e-4, rtol=0)
    assert found.std(0).min() > 0.05


@pytest.mark.parametrize("name", GOLDENS)
@torch.no_grad()
def test_a_head_on_every_family(name, tmp_path):
    """Three rows, a head of three labels with a bias, sharded, against plain.py's hidden states."""
    config, tensors = read(GOLDEN / name)
    head = plain.called(config, "lm_head")
    body, width = {k: t for k, t in tensors.items() if not k.startswith(head)}, plain.text_of(config)["hidden_size"]
    body |= {"score.weight": noise(3, 3, width), "score.bias": noise(4, 3)}
    write_shards(tmp_path, body.items(), {k: t.nbytes for k, t in body.items()}, most=100_000)
    said = {"pad_token_id": None, "id2label": None, "num_labels": 3, "architectures": ["XForSequenceClassification"]}
    text = {"text_config": config["text_config"] | said} if "text_config" in config else {}
    (tmp_path / "config.json").write_text(json.dumps(config | said | text))
    rows = some_rows(128, (24, 7, 23))
    plainly = config | {"final_logit_softcapping": None, "logits_scaling": 1}
    twin = body | {f"{head}.weight": body["score.weight"]}
    wanted = torch.stack([plain.forward(plainly, twin, row)[-1] for row in rows]) + body["score.bias"]
    torch.testing.assert_close(load_reward_model(tmp_path).score(rows).double(), wanted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_logit_of_id_0_is_the_familys_own(tmp_path):
    """With Granite's scale; the pad id of the config decides nothing."""
    config, tensors = read(GOLDEN / "granite")
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = noise(0, *tensors["model.embed_tokens.weight"].shape)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False, "pad_token_id": 5}))
    judge, rows = load_reward_model(tmp_path), [[9, 8, 7, 5], [3], [4, 5]]
    wanted = torch.stack([plain.forward(config, tensors, row)[-1, :1] for row in rows]).float()
    torch.testing.assert_close(judge.score(rows), wanted, atol=1e-4, rtol=0)
    assert judge.labels == ["reward"]


def test_neighbours_pads_and_order_change_nothing():
    judge, rows = small_judge(), some_rows()
    together = judge.score(rows)
    alone = torch.cat([judge.score([row]) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(judge.score(rows[::-1]), together.flip(0), atol=1e-5, rtol=0)
    batches = [places for places, _ in judge.batches(rows, budget=40)]
    assert batches == [[1], [4], [3, 5, 0, 6, 2]]
    assert judge.score([]).shape == (0, 2)
    whole = judge.model(torch.tensor([rows[1]]))  # the last layer computes all of it here
    assert whole.shape[1] == 30
    hidden = judge.model.hidden(torch.tensor([rows[1]]))[0, -1]
    torch.testing.assert_close(together[1], hidden @ judge.head.T + judge.bias, atol=1e-5, rtol=0)


def test_the_last_layer_computes_only_what_is_read():
    judge, seen = small_judge(), []
    judge.model.layers[-1].mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    judge.score(some_rows())
    assert seen == [7]


def test_read_at():
    for row, place in (([5, 7, 0, 0], 1), ([0, 0, 5, 7], 3), ([5, 0, 7], 2), ([0, 0], 0), ([5, 0], 0), ([0], 0)):
        assert read_at(row, 0) == place, row
    assert read_at([5, 7, 0], None) == 2
    assert read_at([5, 7, 0], -1) == 2
    judge = small_judge(pad_id=3)
    padded, bare = judge.score([[4, 5, 3, 3], [4, 5]])
    assert torch.equal(padded, bare)
    assert not torch.equal(judge.score([[4, 5, 3, 4]])[0], bare)


def test_a_float32_head_on_any_decoder():
    """A bfloat16 decoder's hidden state is widened first; a float64 one is not narrowed."""
    model, rows = random_decoder(dtype=torch.bfloat16), some_rows()
    judge = RewardModel(model, noise(1, 2, 24), ["a", "b"])
    hidden = torch.stack([model.hidden(torch.tensor([row]))[0, -1] for row in rows])
    torch.testing.assert_close(judge.score(rows), hidden.float() @ judge.head.T, atol=3e-2, rtol=0)
    assert load_reward_model(REWARDS / "rm_llama_5", dtype="bfloat16").head.dtype == torch.float32
    assert load_reward_model(REWARDS / "rm_llama_5", dtype="float64").head.dtype == torch.float64


@pytest.mark.parametrize(("width", "keys", "labels"), [
    (1, {}, ["reward"]), (1, {"id2label": None}, ["reward"]), (5, {"id2label": None}, FIVE), (9, {}, NINE),
    (10, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, [f"label {i}" for i in range(10)]),
    (2, {"id2label": {"1": "bad", "0": "good"}}, ["good", "bad"])])  # fmt: skip
def test_labels(width, keys, labels, tmp_path):
    judge = load_reward_model(folder_of(tmp_path, tensors=headed(width, bias=width == 9), **keys))
    assert judge.labels == labels
    assert judge.score([[5, 6]]).shape == (1, width)


def test_pad_id_that_a_file_leaves_out_is_the_classs_own(tmp_path):
    assert load_reward_model(folder_of(tmp_path, pad_token_id=None)).pad_id is None  # Llama: none
    assert load_reward_model(folder_of(tmp_path, "rm_gemma2_9_eos", pad_token_id=None)).pad_id == 0
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    assert load_reward_model(tmp_path).pad_id is None  # it says null


def test_what_a_judges_folder_recommends(tmp_path):
    own = {"star_judge": {"weights": [0, 1, 0.5, 0, -1], "format": "steerlm"}}
    judge = load_reward_model(folder_of(tmp_path, "rm_llama_5", **own))
    assert (judge.weights, judge.format) == ((0.0, 1.0, 0.5, 0.0, -1.0), "steerlm")
    for wrong, words in (({"weights": [1, 2]}, ("[1, 2]", "5 finite")), ({"format": "odd"}, ("'odd'", "plain")),
                         ({"weights": [1, 2, 3, 4, math.nan]}, ("5 finite",)), ([1], ("object",))):
        refused(load_reward_model, folder_of(tmp_path, "rm_llama_5", star_judge=wrong), words=(str(tmp_path), *words))


def without_head(held):
    return {k: t for k, t in held.items() if k != "score.weight"}


@pytest.mark.parametrize(("tensors", "keys", "words"), [
    (without_head, {}, ("LlamaForSequenceClassification", "no score.weight")),
    (without_head, {"architectures": None, "tie_word_embeddings": True}, ("id 0 is a word", "--reward-by likelihood")),
    (without_head, {"architectures": None}, ("lacks lm_head.weight",)),
    (lambda h: h | {"score.weight": noise(0, 1, 31)}, {}, ("[1, 31]", "[labels, 32]")),
    (lambda h: h | {"score.weight": noise(0, 32)}, {}, ("[32]", "[labels, 32]")),
    (lambda h: h | {"score.bias": noise(0, 2)}, {}, ("score.bias", "[2]")),
    (lambda h: h | {"score.weight": torch.full((1, 32), math.nan)}, {}, ("score.weight", "not finite")),
    (lambda h: h | {"gating.weight": noise(0, 2)}, {}, ("unexpected gating.weight",)),
    (dict, {"id2label": {"0": "a", "1": "b"}}, ("2 labels", "1 rows")),
    (dict, {"id2label": {"0": "a", "1": "a"}}, ("a name of its own",)),
    (dict, {"id2label": {"x": "a"}}, ("a name of its own",)), (dict, {"id2label": ["a"]}, ("a name of its own",)),
    (dict, {"pad_token_id": "<pad>"}, ("pad_token_id", "'<pad>'"))])  # fmt: skip
def test_refused_folders(tensors, keys, words, tmp_path):
    refused(load_reward_model, folder_of(tmp_path, tensors=tensors, **keys), words=(str(tmp_path), *words))


def test_a_judge_is_no_student(tmp_path):
    refused(checkpoints.load_model, REWARDS / "rm_llama_1", words=("is a judge", "--reward"))
    refused(load_reward_model, tmp_path / "absent", error=FileNotFoundError, words=("absent",))


@pytest.mark.parametrize(("rows", "words"), [
    ([[1], []], ("row 1", "empty")), ([[1], [1, 23]], ("row 1", "id 23", "vocabulary of 23")),
    ([[-1]], ("row 0", "id -1")), ([[2], [1] * 65], ("row 1", "65 tokens", "64"))])  # fmt: skip
def test_rows_that_cannot_be_scored(rows, words):
    refused(small_judge().score, rows, words=words)
    if rows[-1]:
        refused(Likelihood(random_decoder(max_pos=64)).score, [Example(tuple(r), 0) for r in rows], words=words)


def test_weights():
    assert WEIGHTS == {"nemotron-4-340b": (0.3, 0.74, 0.46, 0.47, -0.33), "steerlm-70b": (0.65, 0.8, 0.45, 0.55, -0.4),
                       "steerlm-70b-v1": (0.65, 0.8, 0.45, 0.0, 0.0)}
    assert choose_weights(["x"], None) == (1.0,)
    assert choose_weights(["x", "y"], None, (2.0, 3.0)) == (2.0, 3.0)
    assert choose_weights(FIVE, None) == WEIGHTS["nemotron-4-340b"]
    assert choose_weights(FIVE[::-1], "steerlm-70b") == WEIGHTS["steerlm-70b"][::-1]
    assert choose_weights(NINE, "steerlm-70b") == (0, 0, 0, 0, *WEIGHTS["steerlm-70b"])
    assert choose_weights(NINE, "1,2,3,4,-5") == (0, 0, 0, 0, 1, 2, 3, 4, -5)
    assert choose_weights(["x", "y"], "0.5,-1", (2.0, 3.0)) == (0.5, -1)
    for labels, spec, words in (
            (["x", "y"], None, ("needs 2 numbers", "x, y")), (["x", "y"], "1", ("needs 2", "has 1")),
            (["x"], "steerlm-70b", ("does not name", "needs 1 number")), (FIVE, "1,nan,2,3,4", ("finite",)),
            (["x"], "0", ("not all 0",)), (["x"], "best", ("'best'", "nemotron-4-340b"))):
        refused(choose_weights, labels, spec, words=("--reward-weights", *words))


def test_saved_and_read_again(tmp_path):
    """Adapters merged in, head and bias as they are; a causal model's head is left out, its tokenizer goes along."""
    model = stirred(checkpoints.load_model(SHIPPED), alpha=0.3)
    judge = RewardModel(model, noise(1, 5, 128), FIVE, noise(2, 5), pad_id=0, weights=(1.0, 2, 3, 4, 5),
                        format="plain")
    save_reward_model(judge, tmp_path / "a")
    again = load_reward_model(tmp_path / "a")
    rows = some_rows(17)
    torch.testing.assert_close(again.score(rows), judge.score(rows), atol=1e-4, rtol=0)
    for name in ("labels", "pad_id", "weights", "format"):
        assert getattr(again, name) == getattr(judge, name)
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {str(i): label for i, label in enumerate(FIVE)}
    assert checkpoints.load_tokenizer(tmp_path / "a").vocab_size == checkpoints.load_tokenizer(SHIPPED).vocab_size
    save_reward_model(again, tmp_path / "b")  # a judge's own folder: the same bytes
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    refused(save_reward_model, again, tmp_path / "a", words=("another",))
    refused(save_reward_model, load_reward_model(REWARDS / "rm_nemotron_logit0"), tmp_path, words=("logit", "copy"))


def test_a_judge_built_in_memory_is_saved_by_its_config(tmp_path):
    raw = json.loads((SHIPPED / "config.json").read_text()) | {"tie_word_embeddings": False}
    built = checkpoints.load_model(SHIPPED)
    del built.source
    judge = RewardModel(built, noise(1, 1, 128), ["reward"])
    save_reward_model(judge, tmp_path, raw)
    rows = some_rows(17)
    torch.testing.assert_close(load_reward_model(tmp_path).score(rows), judge.score(rows), atol=1e-5, rtol=0)


def test_a_judge_on_a_causal_model_has_no_vocabulary(tmp_path):
    model = checkpoints.load_model(GOLDEN / "llama2")
    judge = RewardModel(model, noise(1, 1, model.config.d_model), ["reward"])
    save_reward_model(judge, tmp_path)
    assert set(read(GOLDEN / "llama2")[1]) - set(load_file(tmp_path / "model.safetensors")) == {"lm_head.weight"}
    rows = some_rows(128)
    assert torch.equal(load_reward_model(tmp_path).score(rows), judge.score(rows))


@torch.no_grad()
def test_likelihood():
    """Mean of the answer's log-probabilities, one row at a time, and whatever the other rows are."""
    model = random_decoder(max_pos=64)
    examples = [Example(tuple(row), n) for row, n in zip(some_rows(), (4, 29, 0, 1, 3, 10, 2), strict=True) if n]
    wanted = []
    for e in examples:
        logp = model(torch.tensor([e.tokens]))[0].log_softmax(-1)
        wanted.append(sum(logp[i - 1, e.tokens[i]].item() for i in range(e.n_prompt, len(e.tokens))) /
                      (len(e.tokens) - e.n_prompt))
    judge = Likelihood(model)
    assert judge.score(examples)[:, 0].tolist() == pytest.approx(wanted, abs=1e-5)
    assert (judge.labels, judge.score([]).shape) == (["likelihood"], (0, 1))
    refused(judge.score, [Example((1, 2), 2)], words=("row 0", "2 prompt"))


class Spy:
    """A scorer that keeps what it is asked: the number of tokens is the score."""

    labels, max_pos = ("reward",), 60

    def score(self, rows):
        self.rows = [list(row) for row in rows]
        return torch.tensor([[float(len(row))] for row in rows])


def test_plain_rating(tokenizer):
    """One text and an end; equal pairs are scored once; what does not fit is None, never cut."""
    spy = Spy()
    judge = Judge("spy", spy, tokenizer, "plain", (2.0,))
    pairs = [("1+2\n", "=3"), ("1+2\n", "=" * 60), ("1+2\n", "=3"), ("4\n", "")]
    assert judge.rate(pairs) == [(7.0,), None, (7.0,), (3.0,)]
    assert spy.rows == [[*tokenizer.encode("1+2\n=3"), 1], [*tokenizer.encode("4\n"), 1]]
    assert judge.total((1.5,)) == 3.0
    assert judge.rate([]) == []


def test_chat_and_steerlm_rating(tmp_path, tokenizer):
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    seen = []

    class Words:  # texts instead of ids
        eos_ids, unk_id, chat = (1,), None, load_chat(tmp_path)

        def encode(self, text, special=True):
            seen.append((text, special))
            return [ord(c) % 7 for c in text]

    refused(Words.chat.render, [("user", "a")], True, words=("must be the assistant's",))
    spy = Spy()
    spy.max_pos = 10_000
    several = "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc"
    Judge("j", spy, Words(), "chat", (1.0,)).rate([(several, "d")])
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    assert seen.pop() == ("".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns), False)
    Judge("j", spy, Words(), "steerlm", (1.0,)).rate([(several, "d")])
    assert seen.pop() == (
        f"<extra_id_0>System\n{SYSTEM}\n<extra_id_1>User\na\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc\n"
        "<extra_id_1>Assistant\nd\n<extra_id_2>", False)
    example = Judge("j", Likelihood(random_decoder()), Words(), "chat", (1.0,)).encode("a", "bc")
    assert seen == [("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", True), ("bc", False)]
    assert example.tokens[example.n_prompt :] == (ord("b") % 7, ord("c") % 7, 1)


def test_likelihood_of_an_answer(tokenizer, shipped):
    judge = Judge("j", Likelihood(shipped), tokenizer, "plain", (1.0,))
    example = judge.encode("12+3\n", "5")
    assert example == Example((*tokenizer.encode("12+3\n5"), 1), len(tokenizer.encode("12+3\n")))
    right, wrong, none = judge.rate([("86+13\n", "6+3+C0=09\n8+1+C0=09\n=99"), ("86+13\n", "6+3+C0=04\n8+1+C0=02\n=24"),
                                     ("1", "2" * 600)])
    assert right > wrong
    assert none is None


def test_turns():
    assert split_turns("a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc\nd") == [
        ("user", "a"), ("assistant", "b"), ("user", "c\nd")]
    assert split_turns("<extra_id_1>User\na") == [("user", "a")]
    assert split_turns("") == [("user", "")]
    for odd in ("a\n<extra_id_1>Assistant\nb", "a\n<extra_id_1>User\nb", "<extra_id_1>Assistant\n\n<extra_id_1>User\n"):
        refused(split_turns, odd, words=("alternate",))


def test_judges_that_cannot_be(tokenizer, tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")

    class Deaf:
        eos_ids, unk_id, chat = (1,), None, load_chat(tmp_path)

    for args, words in (((Spy(), tokenizer, "odd", (1.0,)), ("'odd'", "steerlm")),
                        ((Spy(), tokenizer, "plain", (1.0, 2.0)), ("2 weights", "1 labels")),
                        ((Spy(), tokenizer, "chat", (1.0,)), ("template",)),
                        ((Spy(), Deaf(), "chat", (1.0,)), ("leaves out the answer",)),
                        ((Likelihood(random_decoder()), tokenizer, "steerlm", (1.0,)), ("likelihood", "steerlm"))):
        refused(Judge, "mine", *args, words=("judge mine", *words))


def test_a_granite_judge_is_saved_as_the_llama_it_is(tmp_path):
    model = stirred(checkpoints.load_model(GOLDEN / "granite"), alpha=0.3)
    judge, rows = RewardModel(model, noise(1, 2, model.config.d_model), ["a", "b"]), some_rows(128)
    save_reward_model(judge, tmp_path)
    again = load_reward_model(tmp_path)
    torch.testing.assert_close(again.score(rows), judge.score(rows), atol=1e-4, rtol=0)
    assert again.model.source.config["model_type"] == "llama"
    assert again.model.config.residual_scale == 1 != model.config.residual_scale
