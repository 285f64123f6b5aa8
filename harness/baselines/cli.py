"""`python3 -m harness baseline show|list`: what is recorded."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.base.project import default_baselines
from harness.baselines.baseline import Baseline, BaselineError
from harness.baselines.document import load
from harness.baselines.result import shown
from harness.baselines.store import Store

REFERENCE_SCHEMA = "lane_reference/1"
_REFERENCE_LIMIT = 1 << 20
_REFERENCE_FIELDS = {"title": str, "result": dict, "provenance": dict}


def main(argv: Sequence[str]) -> int:
    """The command. Returns its exit code: 0; 1 when a file cannot be read, or not one has the name that was asked for.

    Raises SystemExit(2) for wrong usage, which the command line makes 64.
    """
    parser = argparse.ArgumentParser(
        prog="python3 -m harness baseline", description="What is recorded under baselines/."
    )
    parser.add_argument(
        "--root", type=Path, default=default_baselines(), help="the folder of baselines (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="a baseline, or all of them and the published reference")
    show.add_argument("which", nargs="?", metavar="KEY|FILE", help="the beginning of a key's digest, or a file")
    commands.add_parser("list", help="one line for each")
    options = parser.parse_args(argv)
    try:
        if options.command == "list":
            return _list(Store(options.root))
        return _show(Store(options.root), options.which)
    except (BaselineError, OSError) as error:
        print(f"baseline: {error}", file=sys.stderr)
        return 1


def _list(store: Store) -> int:
    baselines, broken = store.all()
    for baseline in baselines:
        print(f"{baseline.result.key.digest()[:12]}  {shown(baseline.path)}  {baseline.recorded}")
    for path in _references(store):
        print(f"reference     {shown(path)}  {_reference(path)['title']}")
    for line in broken:
        print(f"unreadable    {line}")
    if not baselines and not broken:
        print(f"nothing is recorded under {shown(store.root)}")
    return 1 if broken else 0


def _show(store: Store, which: str | None) -> int:
    if which is None:
        baselines, broken = store.all()
        texts = [_baseline_text(baseline) for baseline in baselines]
        texts += [_reference_text(path) for path in _references(store)]
        texts += [f"unreadable: {line}" for line in broken]
        print("\n\n".join(texts) or f"nothing is recorded under {shown(store.root)}")
        return 1 if broken else 0
    path = Path(which)
    if path.is_file():
        paths = [path]
    else:
        paths = [b.path for b in store.all()[0] if b.result.key.digest().startswith(which)]
        paths += [p for p in (*store.paths(), *_references(store)) if which in (p.name, p.stem)]
    if len(set(paths)) != 1:
        found = "no baseline" if not paths else f"{len(set(paths))} baselines"
        raise BaselineError(f"{found} of the key or name {which!r}; python3 -m harness baseline list names all")
    (path,) = set(paths)
    print(_reference_text(path) if path.parent.name == "reference" else _baseline_text(load(path)))
    return 0


def _baseline_text(baseline: Baseline) -> str:
    result, code = baseline.result, baseline.provenance.code
    key = result.key
    guarded = sum(map(len, result.guarded.values()))
    environment = ", ".join(f"{name.removeprefix('packages.')} {value}" for name, value in result.environment.items())
    changed = ", with changed files" if code.dirty else ""
    digests = key.model_digest[:12], key.dataset_digest[:12], key.settings_digest[:12]
    losses = [f"{step.loss:.10g} at step {step.step}" for step in (*result.steps[:1], *result.steps[1:][-1:])]
    if "evaluation loss" in result.end_losses:
        losses.append(f"{result.end_losses['evaluation loss']:.10g} in the evaluation")
    lines = [
        shown(baseline.path),
        f"  recorded       {baseline.provenance.recorded_at}: {baseline.provenance.reason}",
        f"  code           commit {code.commit}{changed}, digest {code.digest[:12]}",
        f"  key            {key.digest()}",
        f"  computed       {result.model}, {key.lane} lane, {key.mode} mode, numeric class {result.numeric_class}",
        "  of             model {}, data {}, settings {}".format(*digests),
        f"  settings       {', '.join(f'{name} {value}' for name, value in result.settings.items())}",
        f"  environment    {environment}",
        f"  loss           {', '.join(losses) or 'none'}",
        f"  tokens digest  {result.tokens_digest or 'none'}",
        f"  tensor digest  {result.tensor_digest}",
        f"  tensors        {len(result.tensors)}",
        f"  tolerance      loss {baseline.tolerance.loss:g} (measured {baseline.tolerance.measured_loss:g}), tensors "
        f"{baseline.tolerance.tensor:g} of their change (measured {baseline.tolerance.measured_tensor:g})",
    ]
    if baseline.guard is not None:
        lines.append(
            f"  guard          {baseline.guard:g} (measured drift {baseline.drift:g}), {guarded} parameters left out"
        )
    return "\n".join(lines)


def _references(store: Store) -> list[Path]:
    return sorted((store.root / "reference").glob("*.json"))


def _reference(path: Path) -> dict[str, Any]:
    """A published reference. Raises BaselineError for another file."""
    try:
        document = json.loads(path.read_bytes()[:_REFERENCE_LIMIT])
        if document["schema"] != REFERENCE_SCHEMA:
            raise ValueError(f"schema {document['schema']!r}, expected {REFERENCE_SCHEMA!r}")
        for name, kind in _REFERENCE_FIELDS.items():
            if not isinstance(document[name], kind):
                raise ValueError(f"expected a {kind.__name__} under {name!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise BaselineError(f"{path}: no valid reference: {error}") from None
    found: dict[str, Any] = document
    return found


def _reference_text(path: Path) -> str:
    document = _reference(path)
    lines = [
        f"{shown(path)}",
        f"  {document['title']}",
        "  a published record, and no criterion: no gate compares with it",
    ]
    for section in ("result", "provenance"):
        lines += [f"  {name:20} {value}" for name, value in document[section].items()]
    return "\n".join(lines)
