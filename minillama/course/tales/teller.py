"""Tells tales: picks a plot, lets it happen in a State, and says each event in words.

Every event goes through the judge's own `State.tell`, so a plot that would contradict
itself fails here, at once, and not in somebody's training data.
"""

import random
from collections.abc import Callable, Iterator

from minillama.course.tales.judge import State
from minillama.course.tales.world import Event, World


class Teller:
    """One tale in the making: the state of things, and what was said so far."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.state = State(world)
        self.events: list[Event] = []
        self.hero, self.friend, self.third = rng.sample(list(world.people), 3)
        self.places = rng.sample(list(world.places), 3)
        self.weather = rng.choice(list(world.weather))
        self.time = rng.choice(world.weather[self.weather])
        self.cause = rng.choice(self._possible_causes())
        self.need = world.causes[self.cause].need
        self.thing = self.pick(world.needs[self.need].helps)
        self.other = self.pick(world.needs[self.need].helps, other_kind=True)

    def _possible_causes(self) -> list[int]:
        return [
            i
            for i, cause in enumerate(self.world.causes)
            if self.weather in cause.weather and self.time in cause.time
        ]

    def pick(self, kind: str, other_kind: bool = False) -> str:
        """A thing of that kind, or of any other kind."""
        things = self.world.things.items()
        return self.rng.choice([n for n, (k, _) in things if (k == kind) != other_kind])

    def say(self, kind: str, **roles: str) -> None:
        """Let an event happen, and keep it."""
        event = Event(kind, roles)
        self.state.tell(event)
        self.events.append(event)

    def coin(self, p: float = 0.5) -> bool:
        return self.rng.random() < p

    # What plots are made of

    def enter(self, person: str, place: str) -> None:
        """Bring a person into the tale, as its opening if there is none."""
        if not self.events:
            weather = {"weather": self.weather, "time": self.time}
            self.say("opening", a=person, p=place, **weather)
        elif self.state.seen_last == place:
            self.say("there_too", a=person)
        else:
            self.say("there", a=person, p=place)

    def enter_all(self, *entries: Callable[[], None]) -> None:
        """Let several beginnings happen in any order."""
        for entry in self.rng.sample(entries, len(entries)):
            entry()

    def needy(self, place: str) -> None:
        """The friend is somewhere, and needs something, for a reason."""
        self.enter(self.friend, place)
        self.say("need", a=self.friend, need=self.need, cause=str(self.cause))

    def owner(self, person: str, place: str, thing: str, second: str = "") -> None:
        """Somebody is somewhere and has something, or two things."""
        things = self.rng.sample([thing, second], 2) if second else [thing]
        roles = dict(zip("xy", things, strict=False)) | self.shades(*things)
        if self.events and not second:
            if self.state.seen_last == place:
                self.say("there_too_with", a=person, **roles)
            else:
                self.say("there_with", a=person, p=place, **roles)
        else:
            self.enter(person, place)
            self.say("have_two" if second else "have", a=person, **roles)

    def lying(self, thing: str, place: str) -> None:
        self.say("lies", x=thing, p=place, **self.shades(thing))

    def shades(self, x: str, y: str = "") -> dict[str, str]:
        """A colour for each thing that can have one."""
        intro = {"colour": x, "colour2": y}
        coloured = {
            r: n for r, n in intro.items() if n and "{" in self.world.things[n][1]
        }
        return {role: self.rng.choice(self.world.colours) for role in coloured}

    def help(self, person: str, place: str, thing: str) -> None:
        """Somebody goes to the friend and gives the thing, in one sentence or two."""
        if self.coin(0.4):
            self.say("bring", a=person, b=self.friend, x=thing)
            return
        if self.coin(0.3):
            self.say("go_because", a=person, b=self.friend, p=place, need=self.need)
        else:
            self.say("go_help", a=person, b=self.friend, p=place)
        self.say("give", a=person, b=self.friend, x=thing)

    def use(self) -> None:
        self.say("use", a=self.friend, x=self.thing, need=self.need)

    def end_well(self, giver: str, taker: str, thing: str) -> None:
        ending = self.rng.choice(["thanks", "happy", "friends", "good_end", "none"])
        if ending == "happy":
            self.say("happy", a=taker, b=giver, x=thing)
        elif ending == "thanks":
            self.say("thanks", a=taker, b=giver)
        elif ending == "friends":
            one, other = self.rng.sample([giver, taker], 2)
            self.say("friends", a=one, b=other)
        elif ending == "good_end":
            self.say("good_end", a=taker)


# Plots. Each is a few events among the hero, the friend and a third person.


def bring(t: Teller) -> None:
    """The hero has what the friend needs, perhaps with another thing, and brings it."""
    here, there, _ = t.places
    second = t.other if t.coin(0.6) else ""
    t.enter_all(lambda: t.needy(there), lambda: t.owner(t.hero, here, t.thing, second))
    t.help(t.hero, there, t.thing)
    t.use()
    t.end_well(t.hero, t.friend, t.thing)


def mistake(t: Teller) -> None:
    """The hero brings the wrong thing; a third person may have the right one."""
    here, there, _ = t.places
    t.enter_all(lambda: t.needy(there), lambda: t.owner(t.hero, here, t.other))
    t.help(t.hero, there, t.other)
    t.say("still", a=t.friend, x=t.other, need=t.need)
    if t.coin(0.7):
        t.owner(t.third, there, t.thing)
        if t.coin():
            t.say("swap", a=t.friend, b=t.third, x=t.other, y=t.thing)
        else:
            t.say("give", a=t.third, b=t.friend, x=t.thing)
        t.use()


def find(t: Teller) -> None:
    """The hero looks for what the friend needs, finds it, and brings it."""
    here, there, far = t.places
    t.needy(there)
    t.enter(t.hero, t.rng.choice([here, there]))
    if t.coin():
        t.say("go_find", a=t.hero, p=far, x=t.thing, **t.shades(t.thing))
    else:
        t.lying(t.thing, far)
        t.say("go_look", a=t.hero, p=far, need=t.need)
        t.say("take", a=t.hero, x=t.thing)
    t.help(t.hero, there, t.thing)
    t.use()


def borrow(t: Teller) -> None:
    """A third person has it: the hero asks, or offers something else for it."""
    _, there, far = t.places
    swaps = t.coin()
    t.needy(there)
    if swaps:
        t.owner(t.hero, there, t.other)
    else:
        t.enter(t.hero, there)
    t.owner(t.third, far, t.thing)
    t.say("go", a=t.hero, p=far)
    if swaps:
        t.say("swap", a=t.hero, b=t.third, x=t.other, y=t.thing)
    else:
        t.say("ask", a=t.hero, b=t.third, x=t.thing)
        t.say("give", a=t.third, b=t.hero, x=t.thing)
    t.say("bring", a=t.hero, b=t.friend, x=t.thing)
    t.use()


def alone(t: Teller) -> None:
    """The friend finds what is needed without anybody's help."""
    here, there, _ = t.places
    t.needy(here)
    if t.coin():
        t.owner(t.hero, t.rng.choice([here, there]), t.other)
    t.lying(t.thing, there)
    t.say("go_look", a=t.friend, p=there, need=t.need)
    t.say("take", a=t.friend, x=t.thing)
    t.use()
    if t.coin():
        t.say("good_end", a=t.friend)


def lost(t: Teller) -> None:
    """The hero loses something; somebody finds it and brings it back."""
    here, there, _ = t.places
    t.owner(t.hero, here, t.other)
    t.say("lose", a=t.hero, x=t.other, p=here)
    t.say("go", a=t.hero, p=there)
    if t.coin():
        t.say("sad", a=t.hero, x=t.other)
    t.enter(t.friend, here)
    give_back(t)


def rain(t: Teller) -> None:
    """It begins to rain; the hero runs, and forgets a thing that a friend brings."""
    open_air = [p for p, (_, roof) in t.world.places.items() if not roof]
    roofed = [p for p, (_, roof) in t.world.places.items() if roof]
    here, roof = t.rng.choice(open_air), t.rng.choice(roofed)
    dry = [w for w, times in t.world.weather.items() if t.time in times]
    t.weather = t.rng.choice([w for w in dry if w != "rainy"])
    t.owner(t.hero, here, t.other)
    with_friend = t.coin()
    if with_friend:
        t.enter(t.friend, here)
    t.say("rain")
    t.say("flee", a=t.hero, p=roof, x=t.other)
    if not with_friend:
        t.enter(t.friend, here)
    give_back(t)


def give_back(t: Teller) -> None:
    """The friend finds what the hero lost, and brings it back."""
    if t.coin():
        t.say("bring_back", a=t.friend, b=t.hero, x=t.other)
    else:
        t.say("take", a=t.friend, x=t.other)
        t.say("bring", a=t.friend, b=t.hero, x=t.other)
    if t.coin():
        t.say("again", a=t.hero, x=t.other)
    else:
        t.end_well(t.friend, t.hero, t.other)


PLOTS: dict[str, Callable[[Teller], None]] = {
    plot.__name__: plot for plot in (bring, mistake, find, borrow, alone, lost, rain)
}


def tell(world: World, rng: random.Random) -> str:
    """One tale, its questions included."""
    teller = Teller(world, rng)
    rng.choice(list(PLOTS.values()))(teller)
    sentences, last = list[str](), None
    for event in teller.events:
        sentences.append(world.write(event, rng, last))
        last = event.roles.get("a")
    number = rng.choices((0, 1, 2), weights=(1, 3, 4))[0]
    return " ".join(sentences) + "".join(questions(teller.state, rng, number))


def questions(state: State, rng: random.Random, number: int) -> list[str]:
    """So many different questions about a tale, with their answers, as text."""
    lines: dict[str, str] = {}
    kinds = list(state.world.questions)
    while len(lines) < number:
        roles = {
            "b": rng.choice(list(state.place)),
            "x": rng.choice(list(state.colour)),
            "need": rng.choice([n for n, _ in state.had_need.values()] or [""]),
        }
        kind = rng.choice(kinds)
        answers = state.answers(kind, roles)
        if len(answers) == 1:
            question = state.world.ask(kind, **roles)
            lines[question] = f"\nQuestion: {question}\nAnswer: {answers[0]}"
    return list(lines.values())


def tales(world: World, seed: int, stories: int) -> Iterator[str]:
    """So many tales; the same seed gives the same ones."""
    rng = random.Random(seed)
    return (tell(world, rng) for _ in range(stories))
