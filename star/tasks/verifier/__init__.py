"""What answer does a text arrive at? The filter of Algorithm 1 stands on this: what it lets through is trained on.

    text -> own         no next question that the model made up, no farewell, no calculator notes
         -> statement   "The answer is ...", "#### ...", "\\boxed{...}", "... is the answer": the last of them
                        or, without any, its last sentence, if that concludes something (sentence: where one ends;
                        retraction: what is behind it takes nothing back, and concludes nothing else)
         -> number, letter or phrase, in one spelling; None if there is none, or not exactly one
            (a number is read by a grammar: words -> digits, sides of "=", one quantity on the last side)

A statement is read whole or not at all: what cannot be accounted for makes it unreadable, for whoever skips a sign, a
power or a scale reads another answer. A hedged, negated, retracted or contradicted answer is none: a right rationale
lost costs a sample, a wrong one kept costs the model. Every function takes any text, raises nothing, and needs time in
proportion to the text. None knows the question, and none checks steps. Each file begins with its vocabulary, and says
above a list what the list protects from. tests/verifier_cases.jsonl holds what all of this was tried on.

Read own, words, quantity, sentence, retraction, statement, number, letter, phrase: each uses only files before it.
"""

from star.tasks.verifier.letter import letter
from star.tasks.verifier.number import number, one_number
from star.tasks.verifier.own import own
from star.tasks.verifier.phrase import normal, phrase

__all__ = ["letter", "normal", "number", "one_number", "own", "phrase"]
