"""Whether what a bundle states of its base weights' licences permits the use. That it is true is taken on trust."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.evidence.errors import one_line, show
from harness.promotion.contents import Findings

# Licences under which weights may be used commercially and passed on in an altered form. An entry more is a decision,
# to be reviewed as one.
PERMITTED = (
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT",
    "NVIDIA Open Model License",
)  # fmt: skip
# Weights that are known to be non-commercial, whatever a bundle says of their licence.
NON_COMMERCIAL_NAMES = re.compile(r"musicgen|audiogen|encodec|magnet[-_]|audiocraft", re.IGNORECASE)
NON_COMMERCIAL_LICENCE = re.compile(r"(^|[^A-Z])(NC|NON[- _]?COMMERCIAL)([^A-Z]|$)", re.IGNORECASE)
FILLERS = frozenset({"agreement", "licence", "license", "licenseref", "version"})

NAME_KEYS = ("name", "id", "model_id")
LICENCE_KEYS = ("licence", "license", "weights_licence", "weights_license")
CODE_LICENCE_KEYS = ("code_licence", "code_license")


def check_licences(manifest: Mapping[str, Any], where: Path, findings: Findings) -> None:
    """What the bundle's manifest, which lies at `where`, states that the voice was trained from."""
    provenance = manifest.get("provenance")
    stated = [
        (f"{where}: {key}[{index}]", entry, ("source",) if key == "base_weights" else ())
        for holder in (manifest, provenance if isinstance(provenance, dict) else {})
        for key in ("base_weights", "source_weights_refs")
        for index, entry in enumerate(_entries(holder.get(key)))
    ]
    objects = [entry for _, entry, _ in stated if isinstance(entry, dict)]
    names = {entry[key] for entry in objects for key in NAME_KEYS if isinstance(entry.get(key), str)}
    for at, entry, needed in stated:
        if not isinstance(entry, str) or entry not in names:  # a name alone refers to the entry with that name
            _check_one(at, entry, needed, findings)
    if not stated:
        findings.refuse("licence_missing", f"{where}: found no base_weights and no source_weights_refs, expected one")


def _check_one(at: str, entry: Any, needed: Sequence[str], findings: Findings) -> None:
    texts = {k: v for k, v in entry.items() if isinstance(v, str) and v.strip()} if isinstance(entry, dict) else {}
    name = next((texts[key] for key in NAME_KEYS if key in texts), None)
    licences = [texts[key] for key in LICENCE_KEYS if key in texts]
    if name is None or not licences or not texts.keys() >= {*needed}:
        expected = ", ".join([" or ".join(NAME_KEYS), *needed, " or ".join(LICENCE_KEYS)])
        findings.refuse("licence_missing", f"{at}: found {show(entry)}, expected an object with {expected}")
        return
    at = f"{at} ({one_line(name, 80)})"
    for key in ("commercial_use_allowed", "redistribution_allowed"):
        if entry.get(key, True) is not True:
            findings.refuse("licence_non_commercial", f"{at}: found {key} {show(entry[key])}, expected true")
    if match := NON_COMMERCIAL_NAMES.search(" ".join(texts.values())):
        found = f"found weights of {match.group()}, which are CC-BY-NC 4.0, with licence {show(licences[0])}"
        findings.refuse("licence_non_commercial", f"{at}: {found}")
    for licence in [*licences, *(texts[key] for key in CODE_LICENCE_KEYS if key in texts)]:
        if NON_COMMERCIAL_LICENCE.search(licence):
            findings.refuse("licence_non_commercial", f"{at}: found licence {show(licence)}")
        elif _licence_words(licence) not in map(_licence_words, PERMITTED):
            expected = f"one of {', '.join(PERMITTED)}"
            findings.refuse("licence_unknown", f"{at}: found licence {show(licence)}, expected {expected}")
        else:
            findings.trust("licence", f"{at}: is {one_line(licence, 80)} by what it says; nobody looked that up")


def _entries(value: Any) -> list[Any]:
    """The base models in a list, in an object by their names, or in one alone."""
    if isinstance(value, dict) and value and all(isinstance(item, dict) for item in value.values()):
        return [{"name": name, **item} for name, item in value.items()]
    return value if isinstance(value, list) else [] if value is None else [value]


def _licence_words(text: str) -> list[str]:
    """A licence's name without what differs between its spellings: `MIT License` is `mit`."""
    return [word for word in re.findall("[a-z0-9]+", text.casefold()) if word not in FILLERS]
