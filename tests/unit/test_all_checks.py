"""Every check of the course tells right from wrong: the gate for its authors."""

import pytest

from minillama.course.checks import every


@pytest.mark.parametrize("check", every(), ids=lambda c: f"{c.name}-{c.title}")
def test_a_check_knows_right_from_wrong(check):
    check.self_test()
