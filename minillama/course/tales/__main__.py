"""Print tales of the tale world, a blank line between two; or judge those of a model.

python -m minillama.course.tales --seed 1 --stories 20000 > many.txt
python -m minillama.course.tales --judge tiny --stories 500
"""

import argparse

from minillama.course.tales import World, tales


def main() -> None:
    parser = argparse.ArgumentParser(description="Print tales, or judge a model's.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stories", type=int, default=650)
    parser.add_argument("--world", help="a TOML file like data/tales.toml")
    parser.add_argument("--judge", metavar="MODEL", help="a name or a folder")
    parser.add_argument("--temperature", type=float, default=0.8)
    asked = parser.parse_args()
    world = World.load(asked.world)
    if asked.judge:
        report(world, asked)
        return
    for number, tale in enumerate(tales(world, asked.seed, asked.stories)):
        print(("\n" if number else "") + tale)


def report(world: World, asked: argparse.Namespace) -> None:
    """Print how many of a model's tales are in the grammar, and how many are true."""
    from minillama.api import load
    from minillama.course.tales.exam import examine

    exam = examine(
        *load(asked.judge),
        asked.stories,
        world=world,
        temperature=asked.temperature,
        seed=asked.seed,
    )
    print(exam)
    for reason, count in exam.reasons()[:10]:
        print(f"{count:4}  {reason}")


if __name__ == "__main__":
    main()
