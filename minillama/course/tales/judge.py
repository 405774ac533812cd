"""Reads a tale, follows what happens in it, and says whether it can be true.

`parse` knows sentences alone. `State.tell` knows what they mean: nobody gives what they
do not have, or is given it by someone far away; a cause must be able to be the cause.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from minillama.course.tales.world import Event, World


class Malformed(ValueError):
    """The text is not in the grammar of tales."""


class Untrue(ValueError):
    """A sentence of the tale cannot be true after those before it."""


@dataclass(frozen=True)
class Tale:
    """What a tale says: its events in order, and its questions with their answers."""

    events: tuple[Event, ...]
    questions: tuple[Event, ...]


@dataclass(frozen=True)
class Verdict:
    """What the judge found: readable, free of contradictions, and if not, why not."""

    well_formed: bool
    consistent: bool
    reason: str = ""


def parse(text: str, world: World) -> Tale:
    """Read a whole tale: an opening, 3 to 9 more sentences, then questions.

    Raises Malformed with the words that could not be read.
    """
    events, questions = list[Event](), list[Event]()
    place, last = 0, None
    while place < len(text) and text[place] != "\n":
        place += bool(events) and text.startswith(" ", place)
        read = world.read(text, place, last)
        if read is None or (place and text[place - 1] != " "):
            raise Malformed(f"no sentence of this world: {_glimpse(text, place)}")
        event, place = read
        events.append(event)
        last = event.roles.get("a")
        last = last if last in world.people else None
    while place < len(text):
        asked = world.read_question(text, place)
        if asked is None:
            raise Malformed(f"no question of this world: {_glimpse(text, place)}")
        questions.append(asked[0])
        place = asked[1]
    openings = [i for i, event in enumerate(events) if event.kind == "opening"]
    if openings != [0]:
        raise Malformed("a tale has one opening, and begins with it")
    if not 4 <= len(events) <= 10:
        raise Malformed(f"a tale has 4 to 10 sentences, not {len(events)}")
    return Tale(tuple(events), tuple(questions))


def judge(text: str, world: World) -> Verdict:
    """Parse a tale and follow it; the verdict names the first thing that is wrong."""
    try:
        tale = parse(text, world)
    except Malformed as error:
        return Verdict(False, False, str(error))
    state = State(world)
    try:
        for event in tale.events:
            state.tell(event)
        for question in tale.questions:
            state.check_answer(question)
    except Untrue as error:
        return Verdict(True, False, str(error))
    return Verdict(True, True)


def _glimpse(text: str, place: int) -> str:
    return repr(text[place : place + 50].strip())


@dataclass
class State:
    """What is so at one point of a tale: who is where, who holds what, and why."""

    world: World
    weather: str = ""
    time: str = ""
    place: dict[str, str] = field(default_factory=dict)  # person to place
    holder: dict[str, str] = field(default_factory=dict)  # thing to person
    lies: dict[str, str] = field(default_factory=dict)  # thing to place
    eaten: set[str] = field(default_factory=set)
    colour: dict[str, str] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)  # person to need, now
    had_need: dict[str, tuple[str, int]] = field(default_factory=dict)  # and cause
    gifts: set[tuple[str, str, str]] = field(default_factory=set)  # giver, taker, thing
    lost: set[tuple[str, str]] = field(default_factory=set)  # person, thing
    relieved: set[str] = field(default_factory=set)  # of a need
    seen_last: str = ""  # where the sentence before took place

    def tell(self, event: Event) -> None:
        """Let an event happen; Untrue if it cannot, with what stands against it."""
        if event.slips:
            raise Untrue(event.slips[0])
        subject = event.roles.get("a")
        if subject is not None and event.kind not in _INTRODUCES:
            self._known(subject)
        for role in ("x", "y"):
            if role in event.roles and event.kind not in _BRINGS:
                self._known_thing(event[role])
        getattr(self, "_" + event.kind)(event)
        self.seen_last = self.place.get(subject or "", self.seen_last)

    # Who and what there is

    def _opening(self, e: Event) -> None:
        self.weather, self.time = e["weather"], e["time"]
        possible = self.time in self.world.weather[self.weather]
        _insist(possible, f"no {self.time} is {self.weather}")
        self.place[e["a"]] = e["p"]

    def _there(self, e: Event) -> None:
        _insist(e["a"] not in self.place, f"{e['a']} was in the tale already")
        self.place[e["a"]] = e["p"]

    def _there_too(self, e: Event) -> None:
        _insist(e["a"] not in self.place, f"{e['a']} was in the tale already")
        self.place[e["a"]] = self.seen_last

    def _have(self, e: Event) -> None:
        self._new_thing(e, "x", "colour")
        self.holder[e["x"]] = e["a"]

    def _have_two(self, e: Event) -> None:
        self._have(e)
        self._new_thing(e, "y", "colour2")
        self.holder[e["y"]] = e["a"]

    def _there_with(self, e: Event) -> None:
        self._there(e)
        self._have(e)

    def _there_too_with(self, e: Event) -> None:
        self._there_too(e)
        self._have(e)

    def _lies(self, e: Event) -> None:
        self._new_thing(e, "x", "colour")
        self.lies[e["x"]] = e["p"]

    # Why

    def _need(self, e: Event) -> None:
        cause = self.world.causes[int(e["cause"])]
        possible = self.weather in cause.weather and self.time in cause.time
        _insist(
            possible,
            f"{cause.why!r} cannot be on a {self.weather} {self.time}",
        )
        _insist(e["a"] not in self.had_need, f"{e['a']} had a need already")
        self.needs[e["a"]] = e["need"]
        self.had_need[e["a"]] = (e["need"], int(e["cause"]))

    def _use(self, e: Event) -> None:
        need = self.world.needs[e["need"]]
        self._holds(e["a"], e["x"])
        self._needs(e["a"], e["need"])
        _insist(self._kind(e["x"]) == need.helps, f"the {e['x']} is no {need.helps}")
        del self.needs[e["a"]]
        self.relieved.add(e["a"])
        if need.eaten:
            del self.holder[e["x"]]
            self.eaten.add(e["x"])

    def _still(self, e: Event) -> None:
        helps = self.world.needs[e["need"]].helps
        self._holds(e["a"], e["x"])
        self._needs(e["a"], e["need"])
        _insist(self._kind(e["x"]) != helps, f"the {e['x']} does help")

    # Going about

    def _go(self, e: Event) -> None:
        _insist(self.place[e["a"]] != e["p"], f"{e['a']} is there already")
        self.place[e["a"]] = e["p"]

    def _go_help(self, e: Event) -> None:
        self._known(e["b"])
        _insist(e["a"] != e["b"], f"{e['a']} cannot help {e['b']}")
        _insist(self.place[e["b"]] == e["p"], f"{e['b']} is not there")
        _insist(e["b"] in self.needs, f"{e['b']} needs no help")
        self._go(e)

    def _go_because(self, e: Event) -> None:
        self._go_help(e)
        self._needs(e["b"], e["need"])

    def _go_look(self, e: Event) -> None:
        _insist(e["need"] in self.needs.values(), f"nobody is {e['need']}")
        self._go(e)

    def _rain(self, e: Event) -> None:
        _insist(self.weather != "rainy", "it was raining already")
        self.weather = "rainy"

    def _shelter(self, e: Event) -> None:
        _insist(self.weather == "rainy", "it was not raining")
        roof_here = self.world.places[self.place[e["a"]]][1]
        _insist(not roof_here, f"{e['a']} was under a roof")
        _insist(
            self.world.places[e["p"]][1], f"it rains {self.world.places[e['p']][0]}"
        )
        self._go(e)

    def _flee(self, e: Event) -> None:
        self._holds(e["a"], e["x"])
        here = self.place[e["a"]]
        self._shelter(e)
        del self.holder[e["x"]]
        self.lies[e["x"]] = here
        self.lost.add((e["a"], e["x"]))

    def _go_find(self, e: Event) -> None:
        self._go(e)
        self._have(e)

    # Things from hand to hand

    def _ask(self, e: Event) -> None:
        self._together(e["a"], e["b"])
        self._holds(e["b"], e["x"])

    def _give(self, e: Event) -> None:
        self._together(e["a"], e["b"])
        self._holds(e["a"], e["x"])
        self.holder[e["x"]] = e["b"]
        self.gifts.add((e["a"], e["b"], e["x"]))

    def _bring(self, e: Event) -> None:
        self._known(e["b"])
        apart = self.place[e["a"]] != self.place[e["b"]]
        _insist(apart, f"{e['b']} is in the same place")
        self.place[e["a"]] = self.place[e["b"]]
        self._give(e)

    def _bring_back(self, e: Event) -> None:
        self._take(e)
        self._bring(e)

    def _swap(self, e: Event) -> None:
        self._holds(e["b"], e["y"])
        self._give(e)
        self.holder[e["y"]] = e["a"]
        self.gifts.add((e["b"], e["a"], e["y"]))

    def _take(self, e: Event) -> None:
        here = self.lies.get(e["x"]) == self.place[e["a"]]
        _insist(here, f"there is no {e['x']} where {e['a']} is")
        del self.lies[e["x"]]
        self.holder[e["x"]] = e["a"]

    def _leave(self, e: Event) -> None:
        self._holds(e["a"], e["x"])
        _insist(self.place[e["a"]] == e["p"], f"{e['a']} is not there")
        del self.holder[e["x"]]
        self.lies[e["x"]] = e["p"]

    def _lose(self, e: Event) -> None:
        self._leave(e)
        self.lost.add((e["a"], e["x"]))

    # How it ends

    def _sad(self, e: Event) -> None:
        gone = (e["a"], e["x"]) in self.lost and self.holder.get(e["x"]) != e["a"]
        _insist(gone, f"{e['a']} has not lost the {e['x']}")

    def _again(self, e: Event) -> None:
        _insist((e["a"], e["x"]) in self.lost, f"{e['a']} never lost the {e['x']}")
        self._holds(e["a"], e["x"])

    def _happy(self, e: Event) -> None:
        given = (e["b"], e["a"], e["x"]) in self.gifts
        _insist(given, f"{e['b']} gave {e['a']} no {e['x']}")

    def _thanks(self, e: Event) -> None:
        given = any((e["b"], e["a"]) == gift[:2] for gift in self.gifts)
        _insist(given, f"{e['b']} gave {e['a']} nothing")
        self._together(e["a"], e["b"])

    def _friends(self, e: Event) -> None:
        pairs = {gift[:2] for gift in self.gifts}
        given = (e["a"], e["b"]) in pairs or (e["b"], e["a"]) in pairs
        _insist(given, f"{e['a']} and {e['b']} gave each other nothing")

    def _good_end(self, e: Event) -> None:
        given = any(taker == e["a"] for _, taker, _ in self.gifts)
        good = (given or e["a"] in self.relieved) and e["a"] not in self.needs
        _insist(good, f"nothing good happened to {e['a']}")

    # Questions

    def check_answer(self, question: Event) -> None:
        """Untrue if the answer to a question is not the one that the tale gives."""
        right = self.answers(question.kind, question.roles)
        if question["answer"] not in right:
            raise Untrue(
                f"{self.world.ask(question.kind, **question.roles)} "
                f"{question['answer']} It should be: {' or '.join(right) or 'unknown'}"
            )

    def answers(self, kind: str, roles: Mapping[str, str]) -> list[str]:
        """The right answers to a question about the tale so far; none if unknown."""
        asked = {"b": "", "x": "", "need": ""} | dict(roles)
        return [text + "." for text in getattr(self, "_answer_" + kind)(**asked)]

    def _answer_who_has(self, x: str, **_: str) -> list[str]:
        if x in self.holder:
            return [self.holder[x]]
        return ["Nobody"] if x in self.eaten or x in self.lies else []

    def _answer_where_person(self, b: str, **_: str) -> list[str]:
        return self._at(self.place.get(b))

    def _answer_where_thing(self, x: str, **_: str) -> list[str]:
        return self._at(self.lies.get(x) or self.place.get(self.holder.get(x, "")))

    def _answer_who_gave(self, b: str, x: str, **_: str) -> list[str]:
        return [a for a, taker, thing in self.gifts if (taker, thing) == (b, x)]

    def _answer_who_needs(self, need: str, **_: str) -> list[str]:
        return [who for who, (had, _) in self.had_need.items() if had == need]

    def _answer_why(self, b: str, need: str, **_: str) -> list[str]:
        had, cause = self.had_need.get(b, ("nothing", 0))
        if had != need:
            return []
        return [self.world.why(self.world.causes[cause], self.world.people[b])]

    def _answer_colour(self, x: str, **_: str) -> list[str]:
        return [self.colour[x].title()] if self.colour.get(x) else []

    # What must hold

    def _at(self, place: str | None) -> list[str]:
        if place is None:
            return []
        at = self.world.places[place][0]
        return [at[0].upper() + at[1:]]

    def _kind(self, thing: str) -> str:
        return self.world.things[thing][0]

    def _known(self, person: str) -> None:
        _insist(person in self.place, f"nobody has heard of {person} yet")

    def _known_thing(self, thing: str) -> None:
        _insist(thing in self.colour, f"nobody has heard of the {thing} yet")

    def _new_thing(self, e: Event, role: str, colour: str) -> None:
        _insist(e[role] not in self.colour, f"the {e[role]} was in the tale already")
        self.colour[e[role]] = e.roles.get(colour, "")

    def _holds(self, person: str, thing: str) -> None:
        _insist(self.holder.get(thing) == person, f"{person} does not have the {thing}")

    def _needs(self, person: str, need: str) -> None:
        _insist(self.needs.get(person) == need, f"{person} is not {need}")

    def _together(self, one: str, other: str) -> None:
        self._known(other)
        _insist(one != other, f"{one} is one person")
        together = self.place[one] == self.place[other]
        _insist(together, f"{one} and {other} are not in one place")


_INTRODUCES = {"opening", "there", "there_too", "there_with", "there_too_with"}
_BRINGS = {"have", "have_two", "lies", "go_find", "there_with", "there_too_with"}


def _insist(true: bool, otherwise: str) -> None:
    if not true:
        raise Untrue(otherwise)
