"""Writes requests.tsv: short requests of six kinds, made from a grammar; nobody's text.

python examples/requests.py > examples/requests.tsv
"""

from __future__ import annotations

import random
import sys

KINDS = {
    "weather": (
        ["will it {sky} in {place} {when}", "how {feel} does it get in {place} {when}",
         "do i need {gear} {when}", "is it going to be {feel} {when}"],
        {"sky": ["rain", "snow", "clear up", "freeze", "storm"],
         "feel": ["warm", "cold", "windy", "humid", "foggy"],
         "gear": ["an umbrella", "a coat", "sunglasses", "boots"]},
    ),
    "travel": (
        ["find me a {ride} to {place} {when}", "when does the {ride} to {place} leave",
         "how far is {place} by {ride}", "i have to be in {place} {when}"],
        {"ride": ["train", "bus", "ferry", "flight", "taxi"]},
    ),
    "alarm": (
        ["wake me at {hour} {when}", "set a timer for {count} minutes",
         "do not let me sleep past {hour}", "remind me {when} at {hour}"],
        {"hour": ["six", "half past seven", "noon", "ten to nine", "five"],
         "count": ["three", "ten", "twenty", "forty"]},
    ),
    "music": (
        ["play something {mood}", "put on a {mood} {tune}", "skip this {tune}",
         "turn the {tune} up a little", "who sings this {mood} {tune}"],
        {"mood": ["slow", "cheerful", "old", "loud", "gentle"],
         "tune": ["song", "waltz", "record", "symphony", "ballad"]},
    ),
    "food": (
        ["how long do i {cook} the {dish}", "order {dish} for {count} people",
         "what goes well with {dish}", "is there any {dish} left to {cook}"],
        {"cook": ["boil", "bake", "fry", "steam", "roast"],
         "dish": ["rice", "carrots", "bread", "lentils", "noodles"],
         "count": ["two", "four", "six"]},
    ),
    "money": (
        ["how much did i {spend} {when}", "send {sum} to my {who}",
         "can my {who} pay {sum} back {when}", "is {sum} too much to {spend} on rent"],
        {"spend": ["spend", "save", "pay", "waste"], "sum": ["ten euros", "forty", "a hundred"],
         "who": ["sister", "landlord", "neighbour", "brother"]},
    ),
}  # fmt: skip
SHARED = {
    "place": ["lisbon", "the harbour", "oslo", "the old town", "kyoto", "the hills"],
    "when": ["tonight", "tomorrow", "on friday", "next week", "this afternoon"],
}
OPENINGS = ["", "", "please ", "hey, ", "could you tell me: ", "quick one, "]


def rows(per_kind: int, seed: int = 0) -> list[tuple[str, str]]:
    """Distinct requests and their kinds, in random order."""
    draw = random.Random(seed)
    made: dict[str, str] = {}
    for kind, (shapes, words) in KINDS.items():
        count = 0
        while count < per_kind:
            text = draw.choice(OPENINGS) + draw.choice(shapes)
            for name, options in {**words, **SHARED}.items():
                text = text.replace("{" + name + "}", draw.choice(options))
            if text not in made:
                made[text] = kind
                count += 1
    pairs = list(made.items())
    draw.shuffle(pairs)
    return pairs


if __name__ == "__main__":
    sys.stdout.write("text\tlabel\n")
    sys.stdout.writelines(f"{text}\t{kind}\n" for text, kind in rows(100))
