"""The tale world: small stories that a program tells, and that a program can judge."""

from minillama.course.tales.judge import Tale, Verdict, judge, parse
from minillama.course.tales.teller import tales, tell
from minillama.course.tales.world import World

__all__ = ["Tale", "Verdict", "World", "judge", "parse", "tales", "tell"]
