"""Everyday questions with five choices (Talmor et al. 2019, arXiv 1811.00937; STaR, section 4.4), from their files.

Reads train_rand_split.jsonl and dev_rand_split.jsonl; the test file has no answers, so dev is what is held out, as in
the paper. The hint marks the right choice. There are no human rationales. The examples below are our own.
"""

from star import data as files
from star.problem import Shot
from star.tasks.jsonl import Fields, Questions, examples, read, with_choices

EXAMPLES = [
    Shot(
        with_choices(
            "Mira came home with a dripping umbrella. Where could she open it to dry without soaking anything?",
            ["bookshelf", "sofa", "bathtub", "wardrobe", "pillow"]),
        "The answer should be a place where falling water does no harm. Of the choices, the bathtub is the only "
        "one made to get wet, because it is waterproof and has a drain.",
        "c"),
    Shot(
        with_choices(
            "On a moonless night, which sight tells a sailor that the coast is close?",
            ["lighthouse", "fishing net", "anchor", "sand castle", "rain cloud"]),
        "The answer should be something on the coast that can be seen from far away in the dark. Of the choices, "
        "a lighthouse is the best, because it stands on the shore and sends out a bright beam.",
        "a"),
    Shot(
        with_choices(
            "Why does a baker leave kneaded bread dough under a cloth for an hour?",
            ["cool the oven", "save flour", "clean the table", "sell it", "let it rise"]),
        "The answer should be something that happens to dough while it rests. Of the choices, only to let it "
        "rise fits, because yeast needs time to fill the dough with gas.",
        "e"),
    Shot(
        with_choices(
            "The toddler yawned and rubbed both eyes halfway through lunch. What would help the toddler most?",
            ["new shoes", "nap", "second spoon", "loud music", "long walk"]),
        "The answer should be something that makes a tired child feel better. Of the choices, a nap is the best, "
        "because yawning and rubbing the eyes are signs of sleepiness.",
        "b"),
    Shot(
        with_choices(
            "Passengers with tickets are standing beside the rails until their carriage pulls in. What are they "
            "standing on?",
            ["runway", "pier", "escalator", "platform", "balcony"]),
        "The answer should be a surface next to rails from which people board a train. Of the choices, the "
        "platform is the only one found beside rails, because it is built for stepping into a carriage.",
        "d"),
    Shot(
        with_choices(
            "Omar repeated one piano piece every evening until spring. How did he hope his playing would sound?",
            ["forgetful", "hungry", "silent", "accidental", "flawless"]),
        "The answer should be a quality that playing gains from a lot of practice. Of the choices, flawless is "
        "the best, because repeating a piece removes the mistakes bit by bit.",
        "e"),
    Shot(
        with_choices(
            "Overnight snow has blocked the front steps. Which tool should Greta fetch from the shed?",
            ["fishing rod", "shovel", "screwdriver", "paintbrush", "watering can"]),
        "The answer should be a tool that can lift and move a heap of loose snow. Of the choices, a shovel is "
        "the best, because its wide blade scoops up a lot of snow at once.",
        "b"),
]


def load(data: str | None = None, few_shot: str | None = None, zero_shot: bool = False,
         shots: int | None = None) -> Questions:
    """data: the folder. Raises FileNotFoundError or ValueError that names the file, the line and what to do."""
    what = "train_rand_split.jsonl and dev_rand_split.jsonl of tau-nlp.org/commonsenseqa"
    fields = Fields("question.stem", "answerKey", choices="question.choices")
    shown = examples(few_shot, zero_shot, shots, EXAMPLES)
    paths = [files.find(data, [f"{part}_rand_split.jsonl", f"{part}.jsonl"], "commonsenseqa", what)
             for part in ("train", "dev")]
    train, dev = (read(path, fields, "choice", part)[0] for path, part in zip(paths, ("train", "dev"), strict=True))
    return Questions(train, dev, shown, "choice")
