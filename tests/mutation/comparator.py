"""The comparator's own code under cosmic-ray: each small change to it must turn a fast test red.

    pip install cosmic-ray
    python tests/mutation/comparator.py SESSION [--again] [harness/baselines/guard.py ...]

SESSION is cosmic-ray's file of what was tried; a second call goes on where the first was stopped, and with --again
tries once more what had survived. The modules are changed on disk while it runs, so run it in a clone. cosmic-ray
makes the changes and keeps the results. Its own loop starts a Python for each change, and most of that time goes into
importing torch; here each one is a fork. docs/measurements/comparator-mutants.md has the outcome.
"""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import syrupy
import torch
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import use_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 90
TESTS = {
    "harness/baselines/guard.py": "property/test_guard unit/test_baselines_record",
    "harness/baselines/differences.py": "unit/test_differences property/test_compare unit/test_baselines_verdicts",
    "harness/baselines/compare.py": "unit/test_differences unit/test_baselines_verdicts unit/test_baselines_record",
    "harness/baselines/result.py": """
        unit/test_differences unit/test_external_result unit/test_baselines_verdicts unit/test_baselines_record""",
    "harness/baselines/baseline.py": "unit/test_baseline_file unit/test_baselines_record",
    "harness/baselines/record.py": "unit/test_baselines_record",
    "harness/evidence/agreement.py": "unit/test_evidence_agreement",
    "harness/evidence/trace.py": "unit/test_evidence",
    "harness/evidence/run.py": "unit/test_evidence",
    "harness/evidence/checkpoint.py": "unit/test_evidence_checkpoint",
    "harness/baselines/snapshot.py": "unit/test_session_gates unit/test_baselines_workflow",
    "harness/baselines/checkpoints.py": "unit/test_checkpoint_differences unit/test_explain",
    "harness/baselines/explain.py": "unit/test_explain",
    "harness/baselines/cli.py": "unit/test_baseline_cli",
    "harness/baselines/second_leg.py": "unit/test_second_leg",
    "harness/evidence/errors.py": "unit/test_evidence_strict",
    "harness/evidence/strict.py": "unit/test_evidence_strict unit/test_evidence",
    "harness/evidence/report.py": "unit/test_evidence_strict",
    "harness/evidence/external.py": "unit/test_evidence_external",
}
# Of the operators of one node a few: thirty ways to break one `+` take thirty times as long and tell no more.
OPERATORS = """
    AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd ReplaceBreakWithContinue
    ReplaceContinueWithBreak ExceptionReplacer NumberReplacer ZeroIterationForLoop
    ReplaceUnaryOperator_Delete_Not ReplaceUnaryOperator_Delete_Invert ReplaceUnaryOperator_USub_UAdd
    ReplaceBinaryOperator_Add_Sub ReplaceBinaryOperator_Sub_Add ReplaceBinaryOperator_Mul_Div
    ReplaceBinaryOperator_Div_Mul ReplaceBinaryOperator_FloorDiv_Mul ReplaceBinaryOperator_Pow_Mul
    ReplaceBinaryOperator_LShift_RShift ReplaceBinaryOperator_BitOr_BitAnd ReplaceBinaryOperator_BitAnd_BitOr
    ReplaceBinaryOperator_BitXor_BitAnd
    ReplaceComparisonOperator_Eq_NotEq ReplaceComparisonOperator_NotEq_Eq ReplaceComparisonOperator_Lt_LtE
    ReplaceComparisonOperator_LtE_Lt
    ReplaceComparisonOperator_Gt_GtE ReplaceComparisonOperator_GtE_Gt
    ReplaceComparisonOperator_Is_IsNot ReplaceComparisonOperator_IsNot_Is
""".split()
# These put what was found into words, or choose what is shown of it; nothing passes or fails by them.
IN_WORDS = """
    likely_cause rows row table text to_json _distance _text _short _far _counts _one_line _read_log recorded
    summary get_assert_diff unused_baselines _moved shown _tensor_table _digits _described _count
    _baseline_text _reference_text
""".split()
IMPORTED_ONCE = (np, syrupy, torch)  # not by each fork


def changes_no_behaviour(tree: ast.Module, spec: MutationSpec) -> bool:
    """Whether a change lies in an annotation, in a class's decorator, or in a number of an f-string (of a message)."""

    def holds(node: ast.expr) -> bool:
        end = (node.end_lineno or 0, node.end_col_offset or 0)
        return (node.lineno, node.col_offset) <= spec.start_pos and spec.end_pos <= end

    def places() -> Iterator[ast.expr | None]:
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign | ast.arg):
                yield node.annotation
            elif isinstance(node, ast.FunctionDef):
                yield node.returns
            elif isinstance(node, ast.ClassDef):
                yield from node.decorator_list
            elif isinstance(node, ast.JoinedStr) and spec.operator_name.endswith("NumberReplacer"):
                yield node

    return any(node is not None and holds(node) for node in places())


def start_session(db: WorkDB, modules: list[str]) -> None:
    """List all changes, and mark those that are not tried."""
    init([Path(module) for module in modules], db, {})
    trees = {module: ast.parse(Path(module).read_text()) for module in modules}
    skipped = [
        item.job_id
        for item in db.work_items
        for spec in item.mutations
        if spec.operator_name.removeprefix("core/") not in OPERATORS
        or spec.definition_name in IN_WORDS
        or changes_no_behaviour(trees[str(spec.module_path)], spec)
    ]
    db.set_multiple_results(skipped, WorkResult(WorkerOutcome.SKIPPED))


class SameExamples:
    """A plugin: before each file of tests the profile that tests/property/conftest.py has replaced."""

    def pytest_pycollect_makemodule(self) -> None:
        hypothesis.settings.load_profile("mutants")


def run_tests(module: str, folder: str) -> None:
    """In a fork: the module's tests, by the same examples each time. Exits with pytest's code."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", deadline=None, derandomize=True, database=None, phases=phases)
    tests = [f"tests/{name}.py" for name in TESTS[module].split()]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder}/pytest"]
    os._exit(int(pytest.main([*options, *tests], plugins=[SameExamples()])))


def killed_by_tests(module: str) -> bool:
    """Whether a test of the module is red, or the tests did not end."""
    with tempfile.TemporaryDirectory() as folder:
        child = multiprocessing.get_context("fork").Process(target=run_tests, args=(module, folder))
        child.start()
        child.join(TIMEOUT_S)
        if child.is_alive():
            os.killpg(child.pid or 0, signal.SIGKILL)
            child.join()
        return child.exitcode != 0


def main(session: str, chosen: list[str]) -> int:
    """Try what was not yet tried of the modules, and tell what survived."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    again = "--again" in chosen
    modules = [name for name in chosen if name != "--again"] or list(TESTS)
    new = not Path(session).exists()
    with use_db(session) as db:
        if new:
            start_session(db, list(TESTS))
        for module in modules:
            survived = [item for item, result in db.completed_work_items if result.test_outcome == TestOutcome.SURVIVED]
            waiting = [*db.pending_work_items, *(survived if again else [])]
            pending = [item for item in waiting if str(item.mutations[0].module_path) == module]
            if pending and killed_by_tests(module):
                print(f"{module}: its tests fail without a change", file=sys.stderr)
                return 1
            sys.dont_write_bytecode = (
                True  # a change within one second, of one length, would be taken for the one before
            )
            begin = time.monotonic()
            for item in sorted(pending, key=lambda item: item.mutations[0].start_pos):
                (spec,) = item.mutations
                operator = get_operator(spec.operator_name)(**spec.operator_args)
                with ExitStack() as change:
                    try:
                        change.enter_context(use_mutation(spec.module_path, operator, spec.occurrence))
                    except AttributeError:  # cosmic-ray cannot replace an exception with a dot in its name
                        db.set_result(item.job_id, WorkResult(WorkerOutcome.SKIPPED))
                        continue
                    outcome = TestOutcome.KILLED if killed_by_tests(module) else TestOutcome.SURVIVED
                db.set_result(item.job_id, WorkResult(WorkerOutcome.NORMAL, test_outcome=outcome))
                if outcome == TestOutcome.SURVIVED:
                    line = Path(module).read_text().splitlines()[spec.start_pos[0] - 1].strip()
                    name = f"{spec.operator_name.removeprefix('core/')} {spec.occurrence}"
                    print(f"{module}:{spec.start_pos[0]}:{spec.start_pos[1]}: {name}: {line}", flush=True)
            done = [result for item, result in db.completed_work_items if str(item.mutations[0].module_path) == module]
            counts = Counter(r.test_outcome.value for r in done if r.test_outcome is not None)
            print(f"{module}: {dict(counts)}, {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(str(Path(sys.argv[1]).absolute()), sys.argv[2:]))
