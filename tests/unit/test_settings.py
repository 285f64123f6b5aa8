"""The settings: one place for each, from which the documentation is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.lane.errors import LaneError
from harness.lane.settings import REPOSITORY, VARIABLES, Settings, Variable, read_settings, settings_table

WORDS = {"{checkout}": str(REPOSITORY), "{run_dir}": str(Path("artifacts").absolute()), "the chunk's": "2.56"}


def documented() -> dict[str, str]:
    """Each variable and its default, as the README's table tells them."""
    text = (REPOSITORY / "README.md").read_text()
    table = text.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert table == settings_table(), "paste what `python3 -m harness.lane --settings-table` prints into README.md"
    rows = [row.split("|") for row in table.splitlines()[2:]]
    return {name.strip(" `"): default.strip() for _, name, default, *_ in rows}


def test_the_documented_defaults_are_the_real_ones() -> None:
    """Setting each variable to what the README says changes nothing."""
    told = {name: default.partition(" or ")[0] for name, default in documented().items()}  # the shipped model's first
    for word, stands_for in WORDS.items():
        told = {name: default.replace(word, stands_for) for name, default in told.items()}
    assert read_settings({**told, "LANE_RUN_ID": "mine"}) == read_settings({"LANE_RUN_ID": "mine"})


def test_another_model_has_the_second_default() -> None:
    other = {"LANE_MODEL": "owner/name", "LANE_NUMERICS": "universal"}
    found = read_settings(other)
    assert (found.batch, found.timeout_s) == (2, 3600.0)
    assert read_settings({**other, "LANE_BATCH": "2", "LANE_TIMEOUT_S": "3600"}).digest() == found.digest()
    assert VARIABLES["LANE_NUMERICS"].default_for(False) == "native"


@pytest.mark.parametrize("name", VARIABLES)
def test_a_default_is_read_as_a_value_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default that is no value of its setting is refused like one: it is not held a second time anywhere."""
    (field,) = (each for each in dataclasses.fields(Settings) if each.metadata["variable"].name == name)
    variable: Variable = dataclasses.replace(VARIABLES[name], default="\0")
    monkeypatch.setitem(_fields(), field.name, variable)
    with pytest.raises(LaneError) as caught:
        read_settings({})
    assert name in caught.value.cause


def _fields() -> dict[str, Variable]:
    from harness.lane import settings

    return settings._FIELDS
