"""The tale world: what the judge says of tales written by hand, and of told ones."""

import random
import re
import subprocess
import sys

import pytest

from minillama.course.tales import World, judge, parse, tales
from minillama.course.tales.judge import Malformed, State, Untrue
from minillama.course.tales.teller import PLOTS, Teller
from minillama.course.tales.world import PRONOUNS, Event, data_file


@pytest.fixture(scope="module")
def world():
    return World.load()


@pytest.fixture(scope="module")
def told(world):
    return list(tales(world, seed=7, stories=600))


GOOD = (
    "One windy evening, Mia was in the garden. She had an apple and a red kite. "
    "Not far away, Tom was by the river. He had not eaten all day, so he was hungry. "
    "Mia went to the river to help Tom. She gave Tom the apple. "
    "Tom ate the apple and was no longer hungry. Tom thanked Mia."
    "\nQuestion: Who has the kite?\nAnswer: Mia."
    "\nQuestion: Why was Tom hungry?\nAnswer: Because he had not eaten all day."
)


def test_a_tale_written_by_hand_is_true(world):
    verdict = judge(GOOD, world)
    assert (verdict.well_formed, verdict.consistent, verdict.reason) == (True, True, "")
    events = parse(GOOD, world).events
    assert [e.kind for e in events] == [
        "opening",
        "have_two",
        "there",
        "need",
        "go_help",
        "give",
        "use",
        "thanks",
    ]
    assert dict(events[1].roles) == {"a": "Mia", "x": "apple", "y": "kite"} | {
        "colour2": "red"
    }
    assert events[3]["a"] == "Tom"  # "He"
    assert events[5]["a"] == "Mia"  # "She"


# Each replaces a part of the tale above, and says what the judge must answer.
UNTRUE = [
    ("She gave Tom the apple", "Tom gave Mia the apple", "Tom does not have the apple"),
    (
        "Mia went to the river to help Tom. She",
        "Mia",
        "Mia and Tom are not in one place",
    ),
    ("She gave Tom the apple. ", "", "Tom does not have the apple"),
    ("gave Tom the apple", "gave Tom the pear", "nobody has heard of the pear yet"),
    ("gave Tom the apple", "gave Ben the apple", "nobody has heard of Ben yet"),
    ("to the river to help", "to the barn to help", "Tom is not there"),
    ("Mia went to the river to", "Tom went to the garden to", "Tom cannot help Tom"),
    ("Tom thanked Mia", "Mia thanked Tom", "Tom gave Mia nothing"),
    ("Tom ate the apple", "Mia ate the apple", "Mia does not have the apple"),
    ("the apple and was no longer hungry", "the kite and was no longer hungry", "kite"),
    ("She had an", "He had an", '"He" can be nobody'),
    ("so he was hungry", "so she was hungry", '"she" is not Tom'),
    ("windy evening", "windy morning", "cannot be on a windy morning"),
    ("windy evening", "sunny evening", "no evening is sunny"),
    ("Who has the kite?\nAnswer: Mia.", "Who has the kite?\nAnswer: Tom.", "Mia."),
    ("Who has the kite?\nAnswer: Mia.", "Who has the apple?\nAnswer: Tom.", "Nobody."),
    (
        "Answer: Because he had not eaten all day",
        "Answer: Because it was dark",
        "eaten",
    ),
    ("Why was Tom hungry", "Why was Mia hungry", "unknown"),
    (
        "Who has the kite?\nAnswer: Mia.",
        "Where is the kite?\nAnswer: In the garden.",
        "By the river.",
    ),
    (
        "Who has the kite?\nAnswer: Mia.",
        "What colour is the kite?\nAnswer: Blue.",
        "Red.",
    ),
    (
        "Who has the kite?\nAnswer: Mia.",
        "Who gave Tom the apple?\nAnswer: Tom.",
        "Mia.",
    ),
    ("Tom thanked Mia", "Mia and Tom were friends from that day on", ""),
    ("Tom thanked Mia", "Mia was sad, because she had lost the apple", "not lost"),
    ("river to help Tom", "barn to help Mia", "Mia cannot help Mia"),
    ("Tom thanked Mia", "Tom was there too", "in the tale already"),
    ("Tom thanked Mia", "It was raining, so Mia ran to the barn", "not raining"),
    ("Tom thanked Mia", "Mia picked up the kite", "there is no kite where Mia is"),
    ("Tom thanked Mia", "Mia left the kite in the garden", "Mia is not there"),
    ("Tom thanked Mia", "Mia asked Tom for the kite", "Tom does not have the kite"),
    ("Tom thanked Mia", "Tom asked Mia for the kite", ""),
    ("Tom thanked Mia", "Mia went to the river", "is there already"),
    ("Tom thanked Mia", "Mia went to the barn to look for something to eat", "nobody"),
    ("Tom thanked Mia", "It was a good day for Mia", "nothing good happened"),
    ("Tom thanked Mia", "In the end, Tom was happy", ""),
    ("Tom thanked Mia", "Tom was happy, because Mia had given him the apple", ""),
    ("Tom thanked Mia", "Tom was happy, because Mia had given him the kite", "no kite"),
    ("Tom thanked Mia", "Zoe came by with a green kite", "in the tale already"),
    (
        "Tom thanked Mia",
        "Tom was still hungry, because he could not eat the kite",
        "Tom",
    ),
]


@pytest.mark.parametrize(("part", "instead", "reason"), UNTRUE)
def test_a_contradiction_is_found_and_named(world, part, instead, reason):
    changed = GOOD.replace(part, instead)
    verdict = judge(changed, world)
    assert verdict.well_formed, verdict.reason
    assert verdict.consistent == (reason == "")
    assert reason in verdict.reason


LOST = (
    "On a windy morning, Leo was in the garden. He was carrying a white kite. "
    "Suddenly it started to rain. It was raining, so Leo ran to the barn. "
    "But in the barn he lost the kite. Then he went to the school. "
    "He was sad, because he had lost the kite. Not far away, Ana was in the barn. "
    "She found the kite and brought it back to Leo. "
    "Leo was happy to have the kite again."
    "\nQuestion: Where is the kite?\nAnswer: At the school."
    "\nQuestion: Who gave Leo the kite?\nAnswer: Ana."
)
SWAP = (
    "One snowy night, Ida was by the river. The snow fell, and she was cold. "
    "Sam was there too, with a blue ball. "
    "At the same time, Noor was at the market with a red coat. Sam went to the market. "
    "He swapped the ball for the coat of Noor. Soon he brought Ida the coat. "
    "Ida put on the coat, and soon she was warm again."
    "\nQuestion: Who has the ball?\nAnswer: Noor."
    "\nQuestion: Where is the ball?\nAnswer: At the market."
    "\nQuestion: Who has the coat?\nAnswer: Ida."
    "\nQuestion: Who gave Sam the coat?\nAnswer: Noor."
    "\nQuestion: Who was cold?\nAnswer: Ida."
)
RAIN = (
    "On a sunny morning, Zoe was on the hill. She had a green hat. "
    "Then it began to rain. "
    "Zoe left the hat behind and ran to the library, because it was raining. "
    "Ben was on the hill. There he found the hat and took it to Zoe. "
    "It was a good day for Zoe."
    "\nQuestion: Where is Ben?\nAnswer: In the library."
    "\nQuestion: What colour is the hat?\nAnswer: Green."
)


@pytest.mark.parametrize("tale", [LOST, SWAP, RAIN])
def test_more_tales_written_by_hand_are_true(world, tale):
    verdict = judge(tale, world)
    assert verdict.consistent, verdict.reason


@pytest.mark.parametrize(
    ("tale", "part", "instead", "reason"),
    [
        (
            GOOD,
            "Tom the apple. Tom ate the apple",
            "Tom the kite. Tom ate the kite",
            "foo",
        ),
        (LOST, "Suddenly it started to rain. ", "", "it was not raining"),
        (LOST, "windy morning", "rainy morning", "it was raining already"),
        (
            LOST,
            "so Leo ran to the barn",
            "so Leo ran to the hill",
            "it rains on the hill",
        ),
        (LOST, "Leo was in the garden", "Leo was in the library", "under a roof"),
        (LOST, "Ana was in the barn", "Ana was in the garden", "no kite where Ana is"),
        (LOST, "But in the barn he", "But in the garden he", "Leo is not there"),
        (LOST, "Leo was happy to", "Ana was happy to", "Ana never lost the kite"),
        (LOST, "back to Leo", "back to Ana", "Ana is in the same place"),
        (LOST, " She found the kite and brought it back to Leo.", "", "does not have"),
        (LOST, "Answer: At the school", "Answer: In the barn", "At the school"),
        (SWAP, "The snow fell", "The wind blew", "because of the wind"),
        (SWAP, "for the coat of Noor", "for the coat of Ida", "Ida does not have"),
        (SWAP, "the ball for the coat", "the coat for the ball", "Noor does not have"),
        (SWAP, "brought Ida the coat", "brought Ida the ball", "Sam does not have"),
        (SWAP, "Sam went to the market. He", "Sam", "not in one place"),
        (SWAP, "Sam went to the market", "Sam went to the barn", "not in one place"),
        (
            SWAP,
            "Who has the ball?\nAnswer: Noor",
            "Who has the ball?\nAnswer: Sam",
            "Noor",
        ),
        (SWAP, "Answer: At the market", "Answer: By the river", "At the market"),
        (RAIN, "Ben was on the hill", "Ben was in the library", "no hat where Ben is"),
        (RAIN, "good day for Zoe", "good day for Ben", "nothing good happened to Ben"),
    ],
)
def test_more_contradictions(world, tale, part, instead, reason):
    verdict = judge(tale.replace(part, instead), world)
    assert verdict.well_formed, verdict.reason
    assert verdict.consistent == (reason == "")
    assert reason in verdict.reason


MALFORMED = [
    ("Mia was in the garden", "Mia was on the garden"),
    ("an apple and", "a apple and"),
    ("Tom thanked Mia.", "Tom thanked."),
    ("Tom thanked Mia.", "Tom thanked Mia"),
    ("Tom thanked Mia.", "Tom thanked  Mia."),
    (". She gave", ".She gave"),
    (". She gave", ".  She gave"),
    ("Tom thanked Mia.", "Tom thanked Mia. "),
    ("One windy evening, Mia was in the garden. ", ""),
    ("Tom thanked Mia.", "One windy evening, Mia was in the garden."),
    ("Answer: Mia.", "Answer: the kite."),
    ("\nAnswer: Mia.", ""),
    ("Who has the kite?", "Who wants the kite?"),
    ("all day.", "all day.\n"),
]


@pytest.mark.parametrize(("part", "instead"), MALFORMED)
def test_what_is_not_in_the_grammar_is_malformed(world, part, instead):
    assert part in GOOD
    verdict = judge(GOOD.replace(part, instead), world)
    assert not verdict.well_formed
    assert not verdict.consistent
    assert verdict.reason


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "hello", GOOD[:100], "Mia", "\0", "😀"]
)
def test_any_text_gets_a_verdict(world, text):
    assert not judge(text, world).well_formed


def test_every_told_tale_is_well_formed_and_true(world, told):
    wrong = [(t, v.reason) for t in told if not (v := judge(t, world)).consistent]
    assert wrong == []


def test_what_was_told_is_what_is_read(world):
    for seed in range(200):
        rng = random.Random(seed)
        teller = Teller(world, rng)
        rng.choice(list(PLOTS.values()))(teller)
        sentences, last = [], None
        for event in teller.events:
            sentences.append(world.write(event, rng, last))
            last = event.roles.get("a")
        assert list(parse(" ".join(sentences), world).events) == teller.events


def test_each_sentence_has_one_meaning(world, told):
    for tale in told[:150]:
        body = tale.split("\n")[0]
        for sentence in re.split(r'(?<=[.!?"]) (?=[A-Z])', body):
            meanings = {
                (t.kind, *t.fixed.items())
                for t in world.templates
                if t.pattern.fullmatch(sentence)
            }
            assert len(meanings) == 1, (sentence, meanings)


def test_every_sentence_and_every_plot_is_used(world, told):
    used = {template.text for template in world.templates}
    kinds = {event.kind for tale in told for event in parse(tale, world).events}
    assert kinds | {"leave", "shelter", "ask"} >= set(world.by_kind)
    assert len(PLOTS) == 7
    assert len(used) == len(world.templates)  # no sentence stands there twice


def test_swapping_two_names_is_mostly_noticed(world, told):
    """The judge depends on who did what: most swaps of people are contradictions."""
    rng, noticed = random.Random(0), 0
    for tale in told[:200]:
        people = [n for n in world.people if n in tale]
        places = [m.start() for m in re.finditer("|".join(people), tale)]
        start = rng.choice(places[1:])
        name = next(n for n in people if tale.startswith(n, start))
        other = rng.choice([n for n in world.people if n != name])
        changed = tale[:start] + other + tale[start + len(name) :]
        noticed += not judge(changed, world).consistent
    assert noticed >= 190


def test_the_same_seed_tells_the_same_tales(world):
    assert list(tales(world, 3, 5)) == list(tales(world, 3, 5))
    assert list(tales(world, 3, 5)) != list(tales(world, 4, 5))


def test_tales_are_varied(world, told):
    assert len(set(told)) == len(told)
    lengths = {len(parse(tale, world).events) for tale in told}
    assert lengths >= {5, 6, 7, 8, 9}
    assert min(lengths) >= 4
    assert max(lengths) <= 10


def test_the_corpus_in_git_is_what_the_command_prints(world):
    text = data_file("tales.txt").read_text("utf-8")
    assert len(text.encode()) <= 300_000
    stories = text.rstrip("\n").split("\n\n")
    assert stories == list(tales(world, 1, len(stories)))


def test_the_command_prints_tales():
    command = [sys.executable, "-m", "minillama.course.tales", "--seed", "1"]
    out = subprocess.run(
        [*command, "--stories", "3"], capture_output=True, text=True, check=True
    ).stdout
    assert data_file("tales.txt").read_text("utf-8").startswith(out.rstrip("\n"))


def test_a_teller_cannot_contradict_itself(world):
    state = State(world)
    state.tell(Event("opening", {"a": "Mia", "p": "barn"} | DAY))
    state.tell(Event("have", {"a": "Mia", "x": "kite", "colour": "red"}))
    state.tell(Event("there_too", {"a": "Tom"}))
    gift = Event("give", {"a": "Mia", "b": "Tom", "x": "kite"})
    state.tell(gift)
    with pytest.raises(Untrue, match="Mia does not have the kite"):
        state.tell(gift)


DAY = {"weather": "sunny", "time": "morning"}


def test_the_world_holds_together(world):
    kinds = {kind for kind, _ in world.things.values()}
    assert {need.helps for need in world.needs.values()} == kinds
    assert {cause.need for cause in world.causes} == set(world.needs)
    assert set(world.people.values()) == set(PRONOUNS)
    meanings = {"_" + kind for kind in world.by_kind}
    assert meanings <= set(dir(State))
    assert {"_answer_" + kind for kind in world.questions} <= set(dir(State))


def test_a_malformed_tale_says_where(world):
    with pytest.raises(Malformed, match="Tom thanked Mia loudly"):
        parse(GOOD.replace("thanked Mia.", "thanked Mia loudly."), world)
