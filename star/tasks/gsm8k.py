"""Grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168; STaR, section 4.5), from their official files.

Reads train.jsonl and test.jsonl, {"question", "answer"}, where an answer is a solution by a human and "#### 72". The
solution is never shown to the model, not as a hint either: it serves the arm that is fine-tuned on human rationales.
The examples below are our own; the paper took its six from the training set.
"""

from star import data as files
from star.problem import Shot
from star.tasks.jsonl import Fields, Questions, examples, read

SHOTS = 6  # as in the paper
EXAMPLES = [
    Shot(
        "Ingrid orders 9 spools of ribbon for the theatre club. Each spool is priced at $4, and the parcel comes "
        "with a flat delivery fee of $7. How many dollars is the whole order?",
        "The spools come to 9 * 4 = 36 dollars. With delivery, the order is 36 + 7 = 43 dollars.",
        "43"),
    Shot(
        "A choir with 67 singers is going to a festival together with 4 conductors. One minibus seats 16 "
        "passengers. What is the smallest number of minibuses that gives everyone a seat?",
        "In all, 67 + 4 = 71 people need a seat. Four minibuses seat 4 * 16 = 64 people. That would leave 71 - "
        "64 = 7 people without a seat. One more minibus is needed for them, so 4 + 1 = 5 minibuses have to go.",
        "5"),
    Shot(
        "A lighthouse museum printed 150 posters. One fifth of the posters went to schools as gifts, and "
        "visitors bought half of what remained. Then the printer delivered 25 extra ones. How many posters does "
        "the museum have now?",
        "The schools got 150 / 5 = 30 posters. After that, 150 - 30 = 120 posters remained. Visitors bought half "
        "of them, so 120 / 2 = 60 posters stayed in the museum. With the delivery, the museum has 60 + 25 = 85 "
        "posters.",
        "85"),
    Shot(
        "A seed library opened the spring with 1,600 packets. Gardeners took home 35% of the packets over the "
        "summer, and in autumn they donated 210 packets of fresh seed. How many packets does the library hold "
        "after the donation?",
        "The gardeners took 1,600 * 0.35 = 560 packets. That left 1,600 - 560 = 1,040 packets. After the "
        "donation, the library holds 1,040 + 210 = 1,250 packets.",
        "1250"),
    Shot(
        "A cable car runs from 9:00 until 16:00, except for a one-hour safety check at noon. While it is running "
        "it makes 3 trips up the mountain per hour, always with 28 passengers aboard. How many passengers ride "
        "up the mountain that day?",
        "From 9:00 until 16:00 is 16 - 9 = 7 hours. Without the safety check, the cable car runs for 7 - 1 = 6 "
        "hours. In that time it makes 6 * 3 = 18 trips. It carries 18 * 28 = 504 passengers.",
        "504"),
    Shot(
        "A cargo bike may be loaded with at most 95 kilograms. Yusuf has already put on a 34-kilogram sack of "
        "compost, an 18-kilogram bag of gravel and a potted tree of 27 kilograms. How many kilograms can he "
        "still add?",
        "The compost and the gravel weigh 34 + 18 = 52 kilograms. With the tree, the load is 52 + 27 = 79 "
        "kilograms. He can still add 95 - 79 = 16 kilograms.",
        "16"),
    Shot(
        "At a kite festival, the tail of Hana's kite carries 14 bows. Pavel tied twice as many bows to his kite "
        "as Hana, while Dalia tied 9 fewer than Pavel. How many bows are on the three kites altogether?",
        "Pavel tied 14 * 2 = 28 bows. Dalia tied 28 - 9 = 19 bows. Hana and Pavel together have 14 + 28 = 42 "
        "bows. With Dalia's bows, the three kites have 42 + 19 = 61 bows.",
        "61"),
    Shot(
        "Nkechi, Bram and Sofia each ran a stall at the harvest fair. Nkechi took in $145, Bram took in $80 more "
        "than Nkechi, and Sofia took in $70. They divided all of it evenly among 4 animal shelters. How many "
        "dollars went to each shelter?",
        "Bram took in 145 + 80 = 225 dollars. Nkechi and Bram together took in 145 + 225 = 370 dollars. With "
        "Sofia's money, that makes 370 + 70 = 440 dollars. Each shelter got 440 / 4 = 110 dollars.",
        "110"),
]


def load(data: str | None = None, few_shot: str | None = None, zero_shot: bool = False,
         shots: int | None = None) -> Questions:
    """data: the folder. Raises FileNotFoundError or ValueError that names the file, the line and what to do."""
    what, fields = "train.jsonl and test.jsonl of github.com/openai/grade-school-math", Fields(rationale="answer")
    shown = examples(few_shot, zero_shot, shots, EXAMPLES, SHOTS)
    paths = [files.find(data, [name], "gsm8k", what) for name in ("train.jsonl", "test.jsonl")]
    train, gold, _ = read(paths[0], fields, "number", "train")
    test, more, _ = read(paths[1], fields, "number", "test")
    return Questions(train, test, shown, "number", gold | more)
