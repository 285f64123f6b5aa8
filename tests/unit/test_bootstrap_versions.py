"""The small version reader of the set-up, held against ``packaging``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from harness.bootstrap.commands import ROOT
from harness.bootstrap.plan import read_requirements
from harness.bootstrap.versions import normalise, parse_requirement, version_key

numbers = st.integers(0, 12).map(str)
releases = st.lists(numbers, min_size=1, max_size=4).map(".".join)
suffixes = st.sampled_from(["", "a1", "b2", "rc1", ".dev0", ".post1", "a1.dev2", ".post1.dev3", "rc2.post1"])
locals_ = st.sampled_from(["", "+cpu", "+cu124", "+git.df5bbc0"])
plain_versions = st.builds("".join, st.tuples(st.sampled_from(["", "1!"]), releases, suffixes))
versions = st.builds("".join, st.tuples(plain_versions, locals_))


@given(plain_versions, plain_versions)
def test_order_is_that_of_packaging(left: str, right: str) -> None:
    assert (version_key(left) < version_key(right)) == (Version(left) < Version(right))
    assert (version_key(left) == version_key(right)) == (Version(left) == Version(right))


@given(versions, st.sampled_from([">=", "<=", "<", "==", "!="]), plain_versions)
def test_range_is_that_of_packaging(installed: str, operator: str, bound: str) -> None:
    expected = SpecifierSet(f"{operator}{bound}").contains(installed, prereleases=True)
    assert parse_requirement(f"torch{operator}{bound}").accepts(installed) == expected


@given(versions, releases, releases)
def test_all_clauses_have_to_hold(installed: str, low: str, high: str) -> None:
    expected = SpecifierSet(f">={low},<{high}").contains(installed, prereleases=True)
    assert parse_requirement(f"torch >= {low}, < {high}").accepts(installed) == expected


@pytest.mark.parametrize(
    "text", ["torch>2.6", "torch~=2.6", "torch==2.*", "torch>=2.6; python_version<'3.12'", "", ">=1"]
)
def test_what_is_not_supported_is_refused_not_guessed(text: str) -> None:
    with pytest.raises(ValueError, match="not understood"):
        parse_requirement(text)


def test_what_is_no_version_is_in_no_range() -> None:
    assert not parse_requirement("torch>=0").accepts("unknown")


def test_every_line_of_pyproject_is_understood() -> None:
    names = [need.name for need in read_requirements(ROOT / "pyproject.toml")]
    assert {"torch", "pytest", "ruff", "huggingface-hub"} <= set(names)
    assert len(names) == len(set(names))
    assert "audiocraft" not in names, "its pins exclude every current torch; the set-up installs it by itself"


@given(st.sampled_from(["Hugging_Face.hub", "hugging-face-hub", "HUGGING__FACE-hub"]))
def test_names_are_compared_as_indexes_do(name: str) -> None:
    assert normalise(name) == "hugging-face-hub"
