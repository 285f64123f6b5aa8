"""The small changes that the sensitivity table is made with fit the code as it is."""

from __future__ import annotations

import pytest
from proof.copies import ROOT, Edit
from proof.sensitivity import CASES


@pytest.mark.parametrize("edit", [edit for case in CASES for edit in case.edits], ids=lambda edit: edit.old[:40])
def test_edit_fits(edit: Edit) -> None:
    assert (ROOT / edit.file).read_text().count(edit.old) == 1
