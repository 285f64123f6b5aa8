"""What a watched program may do on purpose: the words of `watch = {on_purpose = […]}` in a lane's table.

One word for each gate of gates/invariants.py. `word:pattern` says it of the tensors with such a name alone.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

# With each word what a pattern after it names: empty where there is nothing to name.
WORDS = {
    "no_gradient": "tensor",
    "not_moved": "tensor",
    "kept_gradient": "tensor",
    "in_no_optimizer": "tensor",
    "zero_rate": "tensor",
    "constant_rate": "",
    "same_batch": "",
    "detached_loss": "",
    "unlike_replicas": "tensor",
    "not_finite": "tensor",
    "evaluation_in_train_mode": "",
    "training_in_evaluation_mode": "module",
}


def unknown(entry: str) -> tuple[str, str] | None:
    """What was found in an entry of the list and what was expected; None for one that is understood."""
    word, colon, pattern = entry.partition(":")
    if word not in WORDS:
        near = difflib.get_close_matches(word, WORDS, 1)
        return f"the word {word!r}", f"{near[0]}?" if near else f"one of {', '.join(WORDS)}"
    if colon and not WORDS[word]:
        return f"{entry!r}", f"{word} alone: it is said of the whole program"
    if colon and not pattern:
        return f"{entry!r}", f"{word} alone, or {word}:PATTERN, for the name of a {WORDS[word]}"
    return None


def is_on_purpose(entries: Sequence[str], word: str, name: str = "") -> bool:
    """Whether the table says of a word that it is meant, of everything or of this name."""
    parts = [entry.partition(":") for entry in entries]
    return any(said == word and (not colon or fnmatch.fnmatchcase(name, pattern)) for said, colon, pattern in parts)
