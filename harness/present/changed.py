"""``python3 -m harness changed``: did the lane change against a base, by which files, and by what rule?

A workflow with a path filter that is required stays pending for ever when the filter does not match, so the question
is asked inside the job. Where it cannot be answered the answer is yes: gates that ran for nothing cost a minute.
Standard library only: it decides whether anything is to be set up at all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness.base.git import GitFailed, git
from harness.base.project import is_checkout, project_folder
from harness.present.text import code, count, show, table

BASELINE_RULE = "baselines"
CODE_RULES = ("lane code", "settings")


class Undecided(Exception):
    """Git cannot tell. The message says why; `next_command` what to do about it."""

    def __init__(self, message: str, next_command: str) -> None:
        super().__init__(message)
        self.next_command = next_command


@dataclass(frozen=True)
class Rule:
    """Files that a rule is about. In a pattern `*` matches any text, `/` included."""

    name: str
    patterns: tuple[str, ...]
    counts: bool


# The first rule that knows a file decides. A file that none knows counts: the lane may have come to depend on it.
RULES = (
    Rule("documentation", ("*.md", "docs/*", "LICENSE", ".gitignore"), False),
    Rule("settings", ("harness/lane/settings.py", "harness/numerics/modes.py"), True),
    Rule(
        "lane code",
        ("harness/lane/*", "harness/numerics/*", "harness/base/*", "harness/__init__.py"),
        True,
    ),
    Rule("shipped data and model", ("data/*",), True),
    Rule(BASELINE_RULE, ("baselines/*",), True),
    Rule(
        "dependencies and set-up",
        ("pyproject.toml", "harness/bootstrap/*", "harness/__main__.py", ".gitattributes"),
        True,
    ),
    Rule(
        "gates",
        (
            "harness/evidence/*",
            "harness/baselines/*",
            "harness/gates/*",
            "harness/runs/*",
            "harness/session/*",
            "harness/pytest_plugin.py",
            "conftest.py",
            "tests/smoke/*",
        ),
        True,
    ),
    Rule("workflow", (".github/workflows/lane.yml", ".ci/*", "harness/present/changed.py"), True),
    Rule("presentation", ("harness/present/*",), False),
    Rule("other tests", ("tests/*",), False),
)
UNKNOWN = Rule("no rule knows it", (), True)


def rules_of(project: Path) -> tuple[Rule, ...]:
    """The rules for a project's files: those above for this one, and for another what its tables call the lane's code.
    What those do not name counts, but documentation."""
    if is_checkout(project):
        return RULES
    documentation, *_ = RULES
    lanes = (Rule("settings", ("pyproject.toml",), True), Rule("lane code", _code_patterns(project), True))
    return (*lanes, Rule(BASELINE_RULE, ("baselines/*",), True), documentation)


def _code_patterns(project: Path) -> tuple[str, ...]:
    try:
        tables = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["tool"]["harness"]["lanes"].values()
        named = [os.path.normpath(f"{table.get('cwd', '.')}/{path}") for table in tables for path in table["code"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()  # then all but documentation counts
    return tuple(pattern for path in named for pattern in (path, f"{path}/*"))


@dataclass(frozen=True)
class ChangedFile:
    """One file that differs from the base. ``status``: added, changed or removed."""

    path: str
    status: str
    rule: str
    counts: bool


@dataclass(frozen=True)
class Decision:
    """Whether the lane changed. ``problem`` and ``next_command`` are set where git could not tell."""

    base: str
    merge_base: str
    files: tuple[ChangedFile, ...]
    problem: str = ""
    next_command: str = ""

    @property
    def changed(self) -> bool:
        return bool(self.problem) or any(file.counts for file in self.files)

    @property
    def baselines(self) -> tuple[ChangedFile, ...]:
        """The recorded baselines among the files."""
        return tuple(file for file in self.files if file.rule == BASELINE_RULE)

    @property
    def baseline_with_code(self) -> bool:
        """Whether a baseline changed together with what it judges: the change then passes by its own measure."""
        return bool(self.baselines) and any(file.rule in CODE_RULES for file in self.files)

    @property
    def reason(self) -> str:
        """One line."""
        if self.problem:
            return f"treated as changed, because it cannot be decided: {self.problem}"
        counting = [file for file in self.files if file.counts]
        if counting:
            rules = dict.fromkeys(file.rule for file in counting)
            return f"{count(len(counting), 'file')} of the lane: {', '.join(rules)}"
        if self.files:
            return f"{count(len(self.files), 'file')} changed, none of the lane"
        return "no file changed"

    def to_json(self) -> dict[str, Any]:
        """The decision for machines."""
        return {
            "changed": self.changed,
            "decided": not self.problem,
            "reason": self.reason,
            "base": self.base,
            "merge_base": self.merge_base,
            "files": [file.__dict__ for file in self.files],
            "baseline_with_code": self.baseline_with_code,
            "next": self.next_command,
        }


def rule_for(path: str, rules: Sequence[Rule] = RULES) -> Rule:
    """The first rule that knows a file; UNKNOWN if none does."""
    return next((rule for rule in rules if any(fnmatchcase(path, pattern) for pattern in rule.patterns)), UNKNOWN)


def decide(base: str, root: Path | None = None) -> Decision:
    """Compare the working tree (untracked files included) with the merge base of `base` and HEAD. Raises nothing.

    ``root``: the project's folder, in git; the one in which one stands if it is not given.
    """
    root = root or project_folder()
    try:
        merge_base = _merge_base(base, root)
        return Decision(base, merge_base, _changed_files(merge_base, root))
    except Undecided as error:
        return Decision(base, "", (), str(error), error.next_command)


def base_of(environ: Mapping[str, str]) -> str:
    """What a CI job's change is compared with: CHANGE_BASE, else the branch of a pull request on GitHub; else empty."""
    branch = environ.get("GITHUB_BASE_REF")
    return environ.get("CHANGE_BASE") or (f"origin/{branch}" if branch else "")


@dataclass(frozen=True)
class Place:
    """The first changed line of the lane's code or settings; ``count``: how many places changed in all."""

    path: str
    line: int
    count: int


def changed_place(base: str, root: Path | None = None) -> Place | None:
    """Where the lane's code or settings first differ from the merge base of `base` and HEAD; None where they do not,
    and where git cannot tell."""
    root = root or project_folder()
    decision = decide(base, root)
    files = [file for file in decision.files if file.rule in CODE_RULES and file.status != "removed"]
    try:
        places = [(file.path, line) for file in files for line in _changed_lines(decision.merge_base, file.path, root)]
    except Undecided:
        return None
    return Place(*places[0], len(places)) if places else None


def _changed_lines(merge_base: str, path: str, root: Path) -> list[int]:
    """The first line of each changed place of a file; 1 for a file that git does not know yet."""
    hunks = ask_git(root, "diff", "--unified=0", "--no-ext-diff", "--no-color", merge_base, "--", path)
    starts = re.findall(r"^@@ -\S+ \+(\d+)", hunks, re.MULTILINE)
    return [max(1, int(start)) for start in starts] or [1]


def changed(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        "python3 -m harness changed",
        description="Says whether the lane changed against the merge base of REF and HEAD, by which files, and by what "
        "rule. Where that cannot be decided, it counts as changed.",
        epilog="exit codes: 0 answered, whatever the answer; 64 wrong usage. With "
        "GITHUB_OUTPUT set, lane-changed=true|false and reason=... are added to that file.",
    )
    parser.add_argument("--base", metavar="REF", required=True, help="branch, tag or commit to compare with")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", action="store_true", help="print it for a CI job's summary")
    options = parser.parse_args(arguments)
    decision = decide(options.base)
    if options.json:
        print(json.dumps(decision.to_json(), indent=2))
    elif options.markdown:
        print(markdown(decision))
    else:
        print("\n".join(_lines(decision)))
    if decision.problem:
        print(f"cannot be decided: {decision.problem}; next: {decision.next_command}", file=sys.stderr)
    if output := os.environ.get("GITHUB_OUTPUT"):
        with Path(output).open("a", encoding="utf-8") as file:
            # Every value is one printable line: a file's name cannot add an output of its own.
            file.write(f"lane-changed={'true' if decision.changed else 'false'}\nreason={show(decision.reason)}\n")
    return 0


def markdown(decision: Decision) -> str:
    """The decision for a job's summary."""
    answer = "The lane changed" if decision.changed else "The lane did not change: no gate is needed"
    lines = [f"### {answer}", "", f"{code(decision.reason)} (against {code(decision.base or 'no base')})"]
    if decision.next_command:
        lines += ["", f"Next: {code(decision.next_command)}"]
    if decision.files:
        listed = _counting_first(decision)[:100]
        rows = [[code(file.path), file.status, file.rule, "yes" if file.counts else "no"] for file in listed]
        lines += ["", *table(("file", "how", "rule", "counts"), rows)]
        if len(decision.files) > 100:
            lines.append(f"and {len(decision.files) - 100} more files")
    return "\n".join(lines)


def ask_git(root: Path, *words: str) -> str:
    """Git's output. Raises Undecided with its last words."""
    try:
        return git(root, *words)
    except GitFailed as error:
        next_command = "install git, and run this in the checkout" if "cannot be run" in str(error) else "git status"
        raise Undecided(show(str(error)), next_command) from None


def _merge_base(base: str, root: Path) -> str:
    try:
        ask_git(root, "rev-parse", "--git-dir")
    except Undecided as error:
        raise Undecided(f"{root} is no git repository that can be read ({error})", "git clone the project") from None
    if not base.strip("0 "):
        raise Undecided("no base was given (the first push of a branch has none)", "name one: --base origin/main")
    shallow = ask_git(root, "rev-parse", "--is-shallow-repository").strip() == "true"
    whole_history = "git fetch --unshallow (in a workflow: actions/checkout with fetch-depth: 0)"
    try:
        commit = ask_git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}").strip()
    except Undecided:
        hint = whole_history if shallow else "git fetch origin, or name another: --base origin/main"
        where = "this shallow clone" if shallow else "this repository"
        raise Undecided(f"{show(base, 80)!r} is no commit that {where} has", hint) from None
    try:
        return ask_git(root, "merge-base", commit, "HEAD").strip()
    except Undecided:
        hint = whole_history if shallow else "name a base that shares history with HEAD"
        cause = "this clone is shallow" if shallow else "they have no common history"
        raise Undecided(f"{show(base, 80)!r} and HEAD have no merge base: {cause}", hint) from None


def _changed_files(merge_base: str, root: Path) -> tuple[ChangedFile, ...]:
    # Without renames, a file that moved out of the lane is one that was removed from it.
    changed = ask_git(root, "diff", "--name-status", "--no-renames", "--no-relative", "-z", merge_base, "--")
    fields = changed.split("\0")[:-1]
    status = dict(zip(fields[1::2], fields[::2], strict=True))
    untracked = ask_git(root, "ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", ":/")
    status |= dict.fromkeys(untracked.split("\0")[:-1], "A")
    words = {"A": "added", "D": "removed"}
    # Git names files from its top; the project may be a folder below it.
    below = ask_git(root, "rev-parse", "--show-prefix").rstrip("\n") or "."
    status = {os.path.relpath(path, below): how for path, how in status.items()}
    rules = rules_of(root)
    files = []
    for path in sorted(status):
        rule = rule_for(path, rules)
        files.append(ChangedFile(show(path), words.get(status[path], "changed"), rule.name, rule.counts))
    return tuple(files)


def _counting_first(decision: Decision) -> list[ChangedFile]:
    return sorted(decision.files, key=lambda file: not file.counts)


def _lines(decision: Decision) -> list[str]:
    lines = [f"lane changed: {'yes' if decision.changed else 'no'}", f"reason: {decision.reason}"]
    lines += [
        f"  {'counts' if file.counts else '-':<7} {file.status:<8} {file.path}  ({file.rule})"
        for file in _counting_first(decision)
    ]
    if decision.baseline_with_code:
        lines.append("note: a baseline changed together with what it judges")
    return lines
