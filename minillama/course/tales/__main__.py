"""Print tales of the tale world, a blank line between two.

python -m minillama.course.tales --seed 1 --stories 20000 > many.txt
"""

import argparse

from minillama.course.tales import World, tales


def main() -> None:
    parser = argparse.ArgumentParser(description="Print tales, a blank line between.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stories", type=int, default=650)
    parser.add_argument("--world", help="a TOML file like data/tales.toml")
    asked = parser.parse_args()
    for number, tale in enumerate(
        tales(World.load(asked.world), asked.seed, asked.stories)
    ):
        print(("\n" if number else "") + tale)


if __name__ == "__main__":
    main()
