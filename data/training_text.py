"""Sentences of our own for the training narrations: small patterns filled from word lists by a NumPy generator.

There are two vocabularies. Nothing that the shipped model was trained on was said with the held-out one, so held-out
narrations are new texts and not only new orders of old ones.
"""

from __future__ import annotations

from typing import Any

TRAINING = {
    "who": "the baker|my neighbour|an old sailor|the young teacher|our postman|a tired farmer|the clockmaker|"
    "her brother|the night nurse|a travelling singer|the judge|his grandmother|a shy painter|the ferry captain|"
    "every child|nobody",
    "did": "carried|forgot|repaired|painted|found|borrowed|described|weighed|hid|polished|measured|watched|chose|sold|"
    "bought|lifted|followed|counted",
    "how": "gladly|in silence|without a word|twice|with great care|far too quickly|before breakfast|like a fox|"
    "by mistake|as usual|for a joke|in good time",
    "thing": "a copper kettle|the blue umbrella|three wooden boxes|an empty jar|the longest ladder|a bag of flour|"
    "seven candles|the cracked violin|a map of the river|the king's chair|fresh bread|a broken watch|two silver keys|"
    "the green coat|a jug of milk|an orange fish",
    "where": "under the bridge|behind the church|near the old mill|at the edge of the forest|on platform five|"
    "beside the fountain|in the upper valley|across the frozen lake|over the garden wall|in front of the bank",
    "when": "On Thursday|Every spring|Long ago|Shortly after midnight|At half past three|During the storm|Once|"
    "This year|When the fog lifted|Just before dawn|In the dry season",
    "why": "because the road was closed|since nobody had asked|although the judges objected|while the choir sang|"
    "so that the others could rest|until the rain stopped|if the weather held|as the village slept",
}
HELD_OUT = {
    "who": "the librarian|a quiet plumber|my oldest cousin|the beekeeper|two engineers|a visiting doctor|"
    "the goalkeeper|their landlord",
    "did": "opened|recorded|dropped|admired|gathered|returned|explained|washed|guarded",
    "how": "at once|quite well|on purpose|rather badly|with a smile|again and again",
    "thing": "a yellow lantern|the morning paper|eleven pencils|a heavy suitcase|some pepper soup|the last ticket|"
    "an iron bell|a pair of gloves",
    "where": "at the harbour|outside the museum|inside the greenhouse|along the canal|next to the stairs|on the roof",
    "when": "Yesterday|Towards evening|Each August|After lunch|By Friday|Nine years later",
    "why": "though the phone kept ringing|before anyone noticed|whenever the train was late|for the lift was broken|"
    "as soon as the shops had shut",
}
PATTERNS = (
    "{when}, {who} {did} {thing} {where}.",
    "{who} {did} {thing} {how}, {why}.",
    "{why}, {who} {did} {thing}.",
    "Did {who} say that {who2} {did} {thing}?",
    "{when} {who} {did} {thing}, and {who2} {did2} {thing2} {how}.",
    "{thing}, {thing2}, and {number}: that is all that {who} {did}.",
    "{who} {did} {thing} {where}; {who2} {did2} it {how}!",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def sentences(rng: Any, *, words: int, held_out: bool) -> str:
    """About ``words`` words of text, drawn with the NumPy generator ``rng`` from one of the two vocabularies."""
    lists = {name: text.split("|") for name, text in (HELD_OUT if held_out else TRAINING).items()}

    def draw(name: str) -> str:
        return str(lists[name][rng.integers(len(lists[name]))])

    spoken: list[str] = []
    count = 0
    while count < words:
        slots = {name: draw(name) for name in lists} | {f"{name}2": draw(name) for name in ("who", "did", "thing")}
        slots["number"] = f"{TENS[rng.integers(len(TENS))]} {UNITS[rng.integers(len(UNITS))]}"
        sentence = PATTERNS[rng.integers(len(PATTERNS))].format(**slots)
        spoken.append(sentence[0].upper() + sentence[1:])
        count += len(sentence.split())
    return " ".join(spoken)
