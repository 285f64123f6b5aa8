"""``python tests/proof sensitivity``: how small a change the comparison sees, and which changes it rightly does not.

Each case is one whole run of the shipped lane from a copy of the code with one small edit: once in universal mode
against the recorded baseline, once in float32 against a recording from another numeric class, where only the
tolerances can tell.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proof.copies import MEASUREMENTS, ROOT, Edit, changed_copy
from proof.universality import FOREACH
from support.voice import run_lane

from harness.baselines.baseline import Code
from harness.baselines.compare import compare
from harness.baselines.record import record
from harness.baselines.second_leg import code_of
from harness.baselines.store import Store
from harness.baselines.verdict import Verdict
from harness.evidence import RunEvidence, load_run
from harness.numerics.processor import forced

DOCUMENT = MEASUREMENTS / "sensitivity.md"
TRAINER = "harness/lane/trainer.py"
RATE = "optimizer.lr = learning_rate(settings, step)"
CODES = "        codes = tokens.codes[chunks].to(device)\n"
PREDICT = "output = model.lm.compute_predictions(codes, [], conditions(len(codes)))"
ADAPTED = "x.to(self.down.dtype) @ self.down.T @ self.up.T"
DIGEST = "    base_digest = frozen_digest(model)\n"
MATH_KERNEL = "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)"
NATIVE = {"LANE_NUMERICS": "native"}
ELSEWHERE = {**NATIVE, **forced(aten="default")}  # another numeric class than an unpinned run's


@dataclass(frozen=True)
class Case:
    """A small change; ``seen``: whether it changes what the lane means, so that the comparison must see it."""

    name: str
    edits: tuple[Edit, ...]
    seen: bool = True


CASES = (
    Case("nothing changed", (), seen=False),
    Case("learning rate × 1.0001", (Edit(TRAINER, RATE, RATE.replace("= ", "= 1.0001 * ")),)),
    Case("learning rate × 1.01", (Edit(TRAINER, RATE, RATE.replace("= ", "= 1.01 * ")),)),
    Case("one step fewer", (Edit(TRAINER, "range(done + 1, settings.steps + 1)", "range(done + 1, settings.steps)"),)),
    Case(
        "one chunk swapped, step 5",
        (Edit(TRAINER, CODES, f"        if step == 5:\n            chunks = [chunks[0] ^ 1, *chunks[1:]]\n{CODES}"),),
    ),
    Case(
        "dropout 0.01 in the adapter",
        (
            Edit("harness/lane/adapter.py", ADAPTED, f"nn.functional.dropout({ADAPTED}, 0.01)"),
            Edit(TRAINER, DIGEST, f"{DIGEST}    torch.manual_seed(0)\n"),
        ),
    ),
    Case("AdamW's epsilon × 10", (Edit(TRAINER, "EPSILON = 1e-6", "EPSILON = 1e-5"),)),
    Case("weight decay dropped", (Edit(TRAINER, "weight_decay=settings.weight_decay", "weight_decay=0.0"),)),
    Case(
        "one token changed, step 5",
        (Edit(TRAINER, CODES, f"{CODES}        if step == 5:\n            codes[0, 0, 60] ^= 1\n"),),
    ),
    Case(
        "refactoring: sums in another order",
        (
            Edit(
                "harness/lane/objective.py",
                "return Loss(by_codebook.mean(), by_codebook, valid, replaced, sums)",
                "return Loss(by_codebook.flip(0).sum() / codebooks, by_codebook, valid, replaced, sums)",
            ),
            Edit(
                "harness/lane/adapter.py",
                "return output + added.to(output.dtype)",
                "return added.to(output.dtype) + output",
            ),
        ),
        seen=False,
    ),
    Case(
        "refactoring: another attention kernel",
        (Edit(TRAINER, PREDICT, f"with {MATH_KERNEL}:\n            {PREDICT}"),),
        seen=False,
    ),
    Case("refactoring: foreach for fused AdamW", (FOREACH,), seen=False),
)  # fmt: skip


def run(code: Path, folder: Path, settings: dict[str, str]) -> RunEvidence:
    ended = run_lane(folder, settings, root=code)
    return load_run(folder, run_id=ended.run_id)


def distance(verdict: Verdict) -> str:
    """The largest distance that counts, and where the runs part first."""
    far = max((item.distance for item in verdict.items if item.criterion), default=0.0)
    where = f"step {verdict.where.step}, {verdict.where.phase}" if verdict.where else "–"
    return f"{where} | {far:.1e}"


def row(case: Case, native: Store, scratch: Path) -> tuple[str, bool, bool]:
    """(the table's row, whether universal mode did right, whether the tolerance tier did) for one case."""
    code = changed_copy(scratch / "code", case.edits)
    cells, right = [], []
    for settings, store, good in (({}, Store(ROOT / "baselines"), "match"), (NATIVE, native, "tolerance-match")):
        verdict = compare(run(code, scratch / f"run-{good}", settings), store)
        right.append((verdict.kind == good) is not case.seen)
        shown = verdict.kind if verdict.passed else "red"
        cells.append(f"{shown if right[-1] else f'**{shown}**'} | {distance(verdict)}")
    return f"| {case.name} | {' | '.join(cells)} |", right[0], right[1]


def main(arguments: Sequence[str]) -> int:
    """The command; returns 0 if every case in universal mode is as it must be, 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python tests/proof sensitivity",
        description="Run the lane with small changes, see which the comparison sees, and write sensitivity.md.",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name holds TEXT; writes nothing")
    options = parser.parse_args(list(arguments))
    cases = [case for case in CASES if options.only in case.name]
    rows, universal, tolerant = [], [], []
    with tempfile.TemporaryDirectory(prefix="sensitivity-") as name:
        folder = Path(name)
        native = Store(folder / "baselines")
        clean = changed_copy(folder / "clean", ())
        first, second = (run(clean, folder / f"clean-{n}", ELSEWHERE) for n in (1, 2))
        reason = "another numeric class, for a table"
        record(first, second, native, reason=reason, code=Code("unknown", True, ""), environment={})
        for number, case in enumerate(cases, 1):
            line, exact_right, tolerance_right = row(case, native, folder / f"case{number}")
            rows.append(line)
            universal.append(exact_right)
            tolerant.append(tolerance_right)
            print(f"{number}/{len(cases)} {line}", flush=True)
    if not options.only:
        head = first.environment
        lines = [
            "# How small a change the comparison sees",
            "",
            "Written by `python tests/proof sensitivity`; do not edit. Each row is the shipped lane, from a copy of",
            "the code with one small edit: in universal mode against the recorded baseline, and in native float32",
            "against a recording from another numeric class (ATen's default kernels): only tolerances decide there.",
            "*Where* is the first difference; *distance* the largest one that counts (relative for losses, relative to",
            "its change in training for a tensor). A verdict in bold is not what it should be.",
            "",
            f"Universal mode: {sum(universal)} of {len(cases)} as they must be.",
            f"Tolerance tier: {sum(tolerant)} of {len(cases)}.",
            f"{time.strftime('%Y-%m-%d')}, commit {code_of(ROOT).commit[:12]}, torch {head['packages']['torch']}.",
            "",
            "| change | universal | where | distance | float32, other class | where | distance |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
        DOCUMENT.write_text("\n".join(lines) + "\n")
    return 0 if all(universal) else 1
