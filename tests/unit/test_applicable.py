"""What a session says of the gates that had nothing to judge: few lines, and what a line of the table buys."""

from __future__ import annotations

from harness.session.applicable import short


def test_a_line_for_each_line_of_the_table_that_buys_gates() -> None:
    reasons = {
        'the lane mine is not watched: trace = "watch" in its table': ["a", "b", "c", "d"],
        "the lane mine gives no trace": ["loss falls"],
        "the lane mine gives no report": ["root cause is none"],
        "the lane mine need not write this run's id; whether": ["ids"],
        "the lane gives no loss that a baseline could hold": ["loss curve"],
        "the lane mine gives no loss in its status or report": ["last loss"],
        "this session makes 1 training; with --lane-runs=2 it is judged": ["second run"],
    }
    assert list(short(reasons)) == [
        '  4 with trace = "watch" (a PyTorch program) in its table: a, b, c and 1 more',
        '  2 with status = {path = "FILE.json", loss = "NAME"} in its table: last loss, loss curve',
        "  1 this session makes 1 training; with --lane-runs=2 it is judged: second run",
        "  3 on a report and files as docs/evidence.md has them, which the lane does not leave: ids, "
        "loss falls, root cause is none",
    ]
