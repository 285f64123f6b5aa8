"""Just enough of PEP 440 and PEP 508 to ask whether an installed version satisfies a line of pyproject.toml.

``packaging`` is not there on a bare machine. The tests hold this module against it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_VERSION = re.compile(
    r"v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>a|b|c|rc|alpha|beta|pre|preview)[-_.]?(?P<pre_n>\d*))?"
    r"(?:-(?P<post_short>\d+)|(?P<post>[-_.]?(?:post|rev|r)[-_.]?(?P<post_n>\d*)))?"
    r"(?P<dev>[-_.]?dev[-_.]?(?P<dev_n>\d*))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?",
    re.IGNORECASE,
)
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*(?P<clauses>[^;]*)")
_CLAUSE = re.compile(r"(?P<operator>>=|<=|==|!=|<)\s*(?P<version>[A-Za-z0-9.!+_-]+)")
_PRE_ORDER = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}

Key = tuple[int, tuple[int, ...], tuple[int, int], int, float]


def normalise(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def version_key(version: str) -> Key | None:
    """A key that sorts as PEP 440 says, without the local part; None for what is no version."""
    match = _VERSION.fullmatch(version.strip())
    if match is None:
        return None
    release = tuple(int(part) for part in match["release"].split("."))
    while len(release) > 1 and release[-1] == 0:
        release = release[:-1]
    has_post = match["post"] is not None or match["post_short"] is not None
    post = int(match["post_short"] or match["post_n"] or 0) if has_post else -1
    dev = float(match["dev_n"] or 0) if match["dev"] is not None else float("inf")
    if match["pre"] is not None:
        pre = (_PRE_ORDER[match["pre"].lower()], int(match["pre_n"] or 0))
    elif match["dev"] is not None and not has_post:
        pre = (-1, 0)  # 1.0.dev1 comes before 1.0a1
    else:
        pre = (3, 0)
    return (int(match["epoch"] or 0), release, pre, post, dev)


def _is_early(key: Key) -> bool:
    return key[2] != (3, 0) or key[4] != float("inf")


@dataclass(frozen=True)
class Requirement:
    """One line of ``dependencies``: a name and clauses such as ``>=2.6``. Lines with markers are not supported."""

    text: str
    name: str
    clauses: tuple[tuple[str, str], ...]

    def accepts(self, version: str) -> bool:
        """Whether an installed ``version`` is in the range. What is no version is in no range."""
        have = version_key(version)
        if have is None:
            return False
        for operator, wanted_text in self.clauses:
            wanted = version_key(wanted_text)
            if wanted is None:
                return False
            holds = {
                ">=": have >= wanted,
                "<=": have <= wanted,
                # As PEP 440 has it, 8.0rc1 is not "below 8.0".
                "<": have < wanted and not (have[:2] == wanted[:2] and _is_early(have) and not _is_early(wanted)),
                "==": have == wanted,
                "!=": have != wanted,
            }[operator]
            if not holds:
                return False
        return True


def parse_requirement(text: str) -> Requirement:
    """Read a requirement as pyproject.toml writes it. Raises ValueError for anything beyond plain clauses."""
    match = _REQUIREMENT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"requirement {text!r} is not understood: a name and clauses such as >=1.2 are")
    clauses = []
    for part in filter(None, (part.strip() for part in match["clauses"].split(","))):
        clause = _CLAUSE.fullmatch(part)
        if clause is None or version_key(clause["version"]) is None:
            raise ValueError(f"requirement {text!r}: clause {part!r} is not understood")
        clauses.append((clause["operator"], clause["version"]))
    return Requirement(text.strip(), normalise(match["name"]), tuple(clauses))
