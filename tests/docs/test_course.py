"""The examples of the course are run, and so are the answers of its exercises."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from tests.servers import ROOT

COURSE = ROOT / "docs" / "course"
LESSONS = sorted(COURSE.glob("[1-9]-*.md"))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_every_example_and_answer_is_right(lesson: Path) -> None:
    """Each gives the result that is shown, and none is lost by a change: a lesson has ten at least."""
    results = doctest.testfile(str(lesson), module_relative=False)
    assert results.failed == 0
    assert results.attempted >= 10


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_every_exercise_has_an_answer_that_runs(lesson: Path) -> None:
    """Three at least, numbered, each followed by lines that are run and by a sentence or a result."""
    exercises = re.split(r"^\*\*(\d)\.\*\* ", lesson.read_text().split("## Exercises\n")[1], flags=re.MULTILINE)[1:]
    numbers, texts = exercises[::2], exercises[1::2]
    assert numbers == [str(n) for n in range(1, len(texts) + 1)]
    assert len(texts) >= 3
    assert all("    >>> " in text for text in texts)


def test_the_course_is_complete() -> None:
    """Six lessons, each in the list of the course."""
    assert len(LESSONS) == 6
    listed = re.findall(r"\]\((\d-[\w-]+\.md)\)", (COURSE / "README.md").read_text())
    assert listed == [lesson.name for lesson in LESSONS]
