"""Reads what a run left behind, believes none of it, and recomputes every digest (docs/evidence.md).

    run = load_run(Path("artifacts"))
    run.status.status, run.trace.steps[-1].loss, run.checkpoint.tensor_digest

Whatever a file holds, reading it gives a checked value or an EvidenceError: one line that names the file, what was
found and what was expected. Nothing here imports the lane, pytest or (before a checkpoint is read) torch.
"""

from harness.evidence.agreement import (
    checkpoint_agrees,
    end_agrees,
    finite_loss,
    loss_agrees,
    one_run_id,
    rounding_agrees,
    tokens_agree,
)
from harness.evidence.checkpoint import Checkpoint, read_array, read_checkpoint
from harness.evidence.errors import EvidenceError, NotApplicable
from harness.evidence.folder import checkpoint_files, read_checkpoints
from harness.evidence.formats import Sidecar, Status
from harness.evidence.report import (
    CONTRACT_KEYS,
    REPORT_KEYS,
    REPORT_TITLE,
    check_report_keys,
    parse_report,
)
from harness.evidence.run import RunEvidence, load_run
from harness.evidence.strict import hex_float, parse_json
from harness.evidence.trace import Trace, read_trace

__all__ = [
    "CONTRACT_KEYS",
    "REPORT_KEYS",
    "REPORT_TITLE",
    "Checkpoint",
    "EvidenceError",
    "NotApplicable",
    "RunEvidence",
    "Sidecar",
    "Status",
    "Trace",
    "check_report_keys",
    "checkpoint_agrees",
    "checkpoint_files",
    "end_agrees",
    "finite_loss",
    "hex_float",
    "load_run",
    "loss_agrees",
    "one_run_id",
    "parse_json",
    "parse_report",
    "read_array",
    "read_checkpoint",
    "read_checkpoints",
    "read_trace",
    "rounding_agrees",
    "tokens_agree",
]
