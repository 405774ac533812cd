"""Every check of the course tells right from wrong: the gate for its authors."""

import time

import pytest

from minillama.course.checks import every


@pytest.mark.parametrize("check", every(), ids=lambda c: f"{c.name}-{c.title}")
def test_a_check_knows_right_from_wrong(check):
    check.self_test()


@pytest.mark.slow
@pytest.mark.parametrize("check", every(), ids=lambda c: f"{c.name}-{c.title}")
def test_a_check_answers_within_two_seconds(check):
    """Work is measured, not waiting: other programs may be running."""
    for answer in (*check.solutions, *check.mistakes.values()):
        started = time.process_time()
        check.examine(answer)
        assert time.process_time() - started < 2
