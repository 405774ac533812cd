"""The lexicon of the tale world, and its sentences: written and read by one table.

`data/tales.toml` lists who and what there is and every sentence. A `Template` turns one
sentence with slots into text (`World.write`) and back (`World.read`), so the teller and
the parser cannot drift apart. What a sentence means is not known here: see judge.py.
"""

import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

# Python 3.10 has no tomllib of its own.
tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "his", "him")}
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Event:
    """One thing that a tale says: its kind, who and what it is about, and its slips.

    `roles` names the parts ("a" the subject, "b" another person, "x" a thing, ...).
    `slips` are the pronouns that agree with nobody.
    """

    kind: str
    roles: Mapping[str, str]
    slips: tuple[str, ...] = ()

    def __getitem__(self, role: str) -> str:
        return self.roles[role]


@dataclass(frozen=True)
class Need:
    """Something a person can lack: the kind of thing that helps, and what it is to."""

    helps: str
    eaten: bool
    want: str


@dataclass(frozen=True)
class Cause:
    """Why a person has a need, and the weather and the times at which it can be why."""

    need: str
    why: str
    weather: tuple[str, ...]
    time: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """A sentence with slots, and the roles that its words fix ("ate": hungry)."""

    kind: str
    text: str
    fixed: Mapping[str, str]
    pattern: re.Pattern[str]
    slots: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """Everything that tales can be about; `World.load()` reads data/tales.toml."""

    people: dict[str, str]  # name to "she" or "he"
    places: dict[str, tuple[str, bool]]  # name to ("in the garden", has a roof)
    things: dict[str, tuple[str, str]]  # name to (kind, "a {colour} kite")
    colours: tuple[str, ...]
    weather: dict[str, tuple[str, ...]]  # and the times at which it can be
    needs: dict[str, Need]
    causes: tuple[Cause, ...]
    sentences: list[tuple[str, str, dict[str, str]]] = field(repr=False)
    questions: dict[str, tuple[str, str]] = field(repr=False)

    @classmethod
    def load(cls, path: str | Path | None = None) -> "World":
        """Read the world from a TOML file like data/tales.toml (the default)."""
        raw = tomllib.loads(Path(path or data_file("tales.toml")).read_text("utf-8"))
        return cls.from_table(raw)

    @classmethod
    def from_table(cls, raw: Mapping[str, Any]) -> "World":
        world = raw["world"]
        weather = {name: tuple(times) for name, times in world["weather"].items()}
        times = tuple(dict.fromkeys(t for some in weather.values() for t in some))
        causes = tuple(
            Cause(
                c["need"],
                c["why"],
                tuple(c.get("weather", weather)),
                tuple(c.get("time", times)),
            )
            for c in raw["causes"]
        )
        return cls(
            people={n: he for he in PRONOUNS for n in world[he]},
            places={n: (p["at"], p["roof"]) for n, p in raw["places"].items()},
            things={
                n: (kind, intro)
                for kind, things in raw["things"].items()
                for n, intro in things.items()
            },
            colours=tuple(world["colours"]),
            weather=weather,
            needs={
                name: Need(n["helps"], n["eaten"], n["want"])
                for name, n in raw["needs"].items()
            },
            causes=causes,
            sentences=list(_sentences(raw)),
            questions={k: (q, a) for k, (q, a) in raw["questions"].items()},
        )

    # Writing

    def write(self, event: Event, rng: random.Random, last: str | None) -> str:
        """Say an event in one of its ways; a pronoun may stand for the last subject."""
        known = event.roles.get("a")
        ways = [t for t in self.by_kind[event.kind] if _fits(t, event)]
        template = rng.choice(ways)
        pronoun = known is not None and known == last and rng.random() < 0.7
        return self.fill(template, event, pronoun=pronoun)

    def fill(self, template: Template, event: Event, *, pronoun: bool) -> str:
        """Put the words of an event into a template."""
        words = self._words(event, pronoun=pronoun)
        return _SLOT.sub(lambda slot: words[slot[1]], template.text)

    def _words(self, event: Event, *, pronoun: bool) -> dict[str, str]:
        roles = event.roles
        words = {k: v for k, v in roles.items() if k in ("x", "y", "b", "need")}
        words |= {k: roles[k] for k in ("weather", "time") if k in roles}
        if "need" in roles:
            words["want"] = self.needs[roles["need"]].want
        if "a" in roles:
            he, his, him = PRONOUNS[self.people[roles["a"]]]
            words |= {"he": he, "his": his, "him": him, "N": roles["a"]}
            words |= {"a": he, "A": he.title()} if pronoun else {}
            words = {"a": roles["a"], "A": roles["a"]} | words
        if "p" in roles:
            at = self.places[roles["p"]][0]
            words |= {
                "p": at,
                "P": at[0].upper() + at[1:],
                "to": "to the " + roles["p"],
            }
        for new, x, colour in (("new", "x", "colour"), ("new2", "y", "colour2")):
            if x in roles:
                intro = self.things[roles[x]][1]
                words[new] = intro.format(colour=roles.get(colour, ""))
        return words

    # Reading

    def read(self, text: str, start: int, last: str | None) -> tuple[Event, int] | None:
        """The event that `text` tells at `start` and where it ends, or None.

        `last` is the subject of the sentence before: the one a pronoun stands for.
        """
        for template in self.templates:
            found = template.pattern.match(text, start)
            if found:
                return self._event(template, found.groupdict(), last), found.end()
        return None

    def _event(
        self, template: Template, groups: dict[str, str], last: str | None
    ) -> Event:
        roles, slips = dict(template.fixed), list[str]()
        agreeing: list[tuple[int, str]] = []
        for name, text in groups.items():
            slot, _, _ = name.partition("_")
            if slot in ("A", "a", "N"):
                he = text.lower()
                if he in PRONOUNS:
                    if last is None or self.people[last] != he:
                        slips.append(f'"{text}" can be nobody')
                    roles["a"] = last or text
                else:
                    roles["a"] = text
            elif slot in ("he", "his", "him"):
                agreeing.append((("he", "his", "him").index(slot), text))
            elif slot in ("new", "new2"):
                x, colour = ("x", "colour") if slot == "new" else ("y", "colour2")
                roles[x], shade = self._intros[text]
                roles |= {colour: shade} if shade else {}
            else:
                role, meaning = self._meaning(slot, text)
                roles[role] = meaning
        forms = PRONOUNS.get(self.people.get(roles.get("a", ""), ""), ("", "", ""))
        slips += [
            f'"{text}" is not {roles["a"]}' for i, text in agreeing if forms[i] != text
        ]
        return Event(template.kind, roles, tuple(slips))

    def _meaning(self, slot: str, text: str) -> tuple[str, str]:
        if slot in ("p", "P"):
            return "p", self._at[text.lower()]
        if slot == "to":
            return "p", text.removeprefix("to the ")
        if slot == "want":
            return "need", next(n for n, v in self.needs.items() if v.want == text)
        return slot, text

    def read_question(self, text: str, start: int) -> tuple[Event, int] | None:
        """The question and its answer at `start` and where they end, or None.

        The roles are the question's, and "answer" is the answer's text.
        """
        for kind, (ask, answer) in self._question_patterns.items():
            found = ask.match(text, start)
            answered = found and answer.match(text, found.end())
            if found and answered:
                roles = {k.partition("_")[0]: v for k, v in found.groupdict().items()}
                roles["answer"] = answered[0].removeprefix("\nAnswer: ")
                return Event(kind, roles), answered.end()
        return None

    @cached_property
    def _question_patterns(self) -> dict[str, tuple[re.Pattern[str], re.Pattern[str]]]:
        return {
            kind: (self._pattern("\nQuestion: " + q), self._pattern("\nAnswer: " + a))
            for kind, (q, a) in self.questions.items()
        }

    def ask(self, kind: str, **roles: str) -> str:
        """The text of a question."""
        return self.questions[kind][0].format(**roles)

    def why(self, cause: Cause, he: str) -> str:
        """The cause as an answer: "Because she had not eaten all day"."""
        forms = dict(zip(_AGREE, PRONOUNS[he], strict=True))
        text = cause.why.format(**forms)
        return text[0].upper() + text[1:]

    @cached_property
    def templates(self) -> list[Template]:
        """All sentences, ready to write and to read."""
        return [
            Template(kind, text, fixed, self._pattern(text), tuple(_SLOT.findall(text)))
            for kind, text, fixed in self.sentences
        ]

    @cached_property
    def by_kind(self) -> dict[str, list[Template]]:
        table: dict[str, list[Template]] = {}
        for template in self.templates:
            table.setdefault(template.kind, []).append(template)
        return table

    def _pattern(self, text: str) -> re.Pattern[str]:
        parts, counts = _SLOT.split(text), dict[str, int]()
        for i in range(1, len(parts), 2):
            slot = parts[i]
            counts[slot] = counts.get(slot, 0) + 1
            parts[i] = f"(?P<{slot}_{counts[slot]}>{self._choices[slot]})"
        parts[::2] = [re.escape(part) for part in parts[::2]]
        return re.compile("".join(parts))

    @cached_property
    def _choices(self) -> dict[str, str]:
        at = [at for at, _ in self.places.values()]
        shown: dict[str, Sequence[str]] = {
            "A": [*self.people, "She", "He"],
            "a": [*self.people, *PRONOUNS],
            "N": list(self.people),
            "b": list(self.people),
            "who": [*self.people, "Nobody"],
            "x": list(self.things),
            "new": list(self._intros),
            "p": at,
            "P": [p[0].upper() + p[1:] for p in at],
            "to": ["to the " + place for place in self.places],
            "weather": list(self.weather),
            "time": sorted({t for times in self.weather.values() for t in times}),
            "need": list(self.needs),
            "want": [need.want for need in self.needs.values()],
            "Colour": [colour.title() for colour in self.colours],
            "why": [self.why(c, he) for c in self.causes for he in PRONOUNS],
        }
        shown |= {"y": shown["x"], "new2": shown["new"]}
        shown |= {w: [p[i] for p in PRONOUNS.values()] for i, w in enumerate(_AGREE)}
        return {k: "|".join(map(re.escape, words)) for k, words in shown.items()}

    @cached_property
    def _intros(self) -> dict[str, tuple[str, str]]:
        """ "a red kite" to ("kite", "red"), and "an apple" to ("apple", "")."""
        return {
            intro.format(colour=colour): (name, colour if "{" in intro else "")
            for name, (_, intro) in self.things.items()
            for colour in self.colours
        }

    @cached_property
    def _at(self) -> dict[str, str]:
        return {at.lower(): place for place, (at, _) in self.places.items()}


_AGREE = ("he", "his", "him")


def _fits(template: Template, event: Event) -> bool:
    return all(event.roles.get(k) == v for k, v in template.fixed.items())


def _sentences(raw: Mapping[str, Any]) -> Any:
    for kind, texts in raw["sentences"].items():
        yield from ((kind, text, {}) for text in texts)
    for name, need in raw["needs"].items():
        for kind in ("use", "still"):
            yield from ((kind, text, {"need": name}) for text in need[kind])
    for number, cause in enumerate(raw["causes"]):
        fixed = {"need": cause["need"], "cause": str(number)}
        yield from (("need", text, fixed) for text in cause["says"])


def data_file(name: str) -> Path:
    """A file of the data folder: inside the installed package, or the repository's."""
    package = Path(__file__).parents[2]
    for folder in (package / "data", package.parent / "data"):
        if (folder / name).exists():
            return folder / name
    raise ValueError(f"data/{name} is not here: install minillama again")
