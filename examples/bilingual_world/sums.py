"""Plans of arithmetic word problems with step-by-step solutions."""

from collections.abc import Callable
import random
from typing import NamedTuple

from examples.bilingual_world import lists
from examples.bilingual_world.facts import World
from examples.bilingual_world.plan import Clock, Count, Mention, Plan, Sentence, Slots

COUNTED = tuple("apple pear plum peach lemon egg bun candle pencil book cup kite melon".split())


class Sum(NamedTuple):
    """A word problem with its solution."""

    name: str
    """The key of the problem's templates without ``sum.``."""
    slots: Slots
    """Values for the placeholders of the templates."""
    steps: tuple[Sentence, ...]
    """The steps of the solution."""
    result: object
    """The result, which is an int, a Count or a Clock."""


def worked_sum(world: World, rng: random.Random) -> Plan:
    """Return the plan of one to three problems or drills with their steps and answers."""
    paragraphs: list[tuple[Sentence, ...]] = []
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.3:
            paragraphs += _drill(rng)
            continue
        problem = rng.choice(PROBLEMS)(world, rng)
        statement = Sentence(f"sum.{problem.name}", problem.slots)
        question = Sentence(f"sum.{problem.name}.ask", problem.slots)
        answer = Sentence(f"sum.{problem.name}.answer", problem.slots | {"v": problem.result})
        paragraphs += [(statement, question), (*problem.steps, answer)]
    return Plan("sum", tuple(paragraphs))


def step(left: int, sign: str, right: int) -> Sentence:
    """Return a step such as ``3 + 4 = 7``.

    ``sign`` is ``add``, ``subtract``, ``multiply`` or ``divide``.
    """
    result = {
        "add": left + right,
        "subtract": left - right,
        "multiply": left * right,
        "divide": left // max(right, 1),
    }[sign]
    return Sentence(f"step.{sign}", {"x": left, "y": right, "z": result})


def buying(world: World, rng: random.Random) -> Sum:
    """Return a problem about the change from a purchase."""
    number, price = rng.randint(2, 9), rng.randint(2, 9)
    cost = number * price
    paid = (cost // 10 + rng.randint(1, 3)) * 10
    slots = {
        "a": Mention(rng.choice(world.people)),
        "f": Count(number, rng.choice(COUNTED)),
        "p": Count(price, "coin"),
        "q": Count(paid, "coin"),
    }
    steps = (step(number, "multiply", price), step(paid, "subtract", cost))
    return Sum("buying", slots, steps, Count(paid - cost, "coin"))


def giving(world: World, rng: random.Random) -> Sum:
    """Return a problem about a person who gets more of the things that the person has."""
    have, more = rng.randint(2, 60), rng.randint(2, 40)
    one, other = rng.sample(world.people, 2)
    thing = rng.choice(COUNTED)
    slots = {"a": Mention(one), "b": Mention(other), "f": Count(have, thing), "m": more, "x": thing}
    return Sum("giving", slots, (step(have, "add", more),), Count(have + more, thing))


def losing(world: World, rng: random.Random) -> Sum:
    """Return a problem about the number of things that are left after a sale."""
    have = rng.randint(10, 90)
    sold = rng.randint(2, have - 2)
    thing = rng.choice(COUNTED)
    slots = {"a": Mention(rng.choice(world.people)), "f": Count(have, thing), "m": sold, "x": thing}
    return Sum("losing", slots, (step(have, "subtract", sold),), Count(have - sold, thing))


def sharing(world: World, rng: random.Random) -> Sum:
    """Return a problem about sharing things equally among children."""
    children, each = rng.randint(2, 9), rng.randint(2, 12)
    total = children * each
    thing = rng.choice(COUNTED)
    slots = {
        "a": Mention(rng.choice(world.people)),
        "f": Count(total, thing),
        "c": Count(children, "child"),
        "x": thing,
    }
    return Sum("sharing", slots, (step(total, "divide", children),), Count(each, thing))


def walking(world: World, rng: random.Random) -> Sum:
    """Return a problem about the length of a journey in two parts."""
    first, second = rng.randint(2, 40), rng.randint(2, 40)
    towns = rng.sample(lists.TOWNS, 3)
    slots = {"a": Mention(rng.choice(world.people)), "n": first, "m": second}
    slots |= dict(zip("tuw", towns, strict=True))
    return Sum("walking", slots, (step(first, "add", second),), first + second)


def ages(world: World, rng: random.Random) -> Sum:
    """Return a problem about the age that the older of two people will have."""
    one, other = rng.sample(world.people, 2)
    gap, later = rng.randint(2, 9), rng.randint(2, 9)
    slots = {"a": Mention(one), "b": Mention(other), "n": one.age, "m": gap, "k": later}
    steps = (step(one.age, "add", gap), step(one.age + gap, "add", later))
    return Sum("ages", slots, steps, one.age + gap + later)


def working_day(world: World, rng: random.Random) -> Sum:
    """Return a problem about the time at which a working day ends."""
    start, hours = rng.randint(5, 11), rng.randint(2, 9)
    worker = rng.choice([person for person in world.people if person.job])
    slots = {
        "a": Mention(worker),
        "h": Clock(start, 0),
        "n": hours,
        "w": lists.WORKPLACES[worker.job],
    }
    return Sum("hours", slots, (step(start, "add", hours),), Clock(start + hours, 0))


def rows_of_trees(world: World, rng: random.Random) -> Sum:
    """Return a problem about the number of trees in equal rows."""
    rows, each = rng.randint(2, 12), rng.randint(2, 12)
    slots = {"a": Mention(rng.choice(world.people)), "n": rows, "m": each}
    return Sum("rows", slots, (step(rows, "multiply", each),), Count(rows * each, "tree"))


def gathering(world: World, rng: random.Random) -> Sum:
    """Return a problem about the difference between two amounts."""
    few = rng.randint(3, 50)
    gap = rng.randint(2, 30)
    one, other = rng.sample(world.people, 2)
    thing = rng.choice(("apple", "pear", "plum", "mushroom", "cherry", "tomato"))
    slots = {
        "a": Mention(one),
        "b": Mention(other),
        "f": Count(few + gap, thing),
        "g": Count(few, thing),
        "x": thing,
    }
    return Sum("gathering", slots, (step(few + gap, "subtract", few),), Count(gap, thing))


PROBLEMS: tuple[Callable[[World, random.Random], Sum], ...] = (
    buying,
    giving,
    losing,
    sharing,
    walking,
    ages,
    working_day,
    rows_of_trees,
    gathering,
)


def _drill(rng: random.Random) -> list[tuple[Sentence, ...]]:
    """Return the paragraphs of an addition by tens and ones, or of part of a times table."""
    if rng.random() < 0.4:
        number, first = rng.randint(2, 12), rng.randint(1, 7)
        lines = tuple(step(number, "multiply", first + i) for i in range(rng.randint(3, 5)))
        return [(Sentence("drill.table", {"n": number}), *lines)]
    left, right = rng.randint(11, 89), rng.randint(11, 89)
    tens = (left // 10 * 10, right // 10 * 10)
    ones = (left % 10, right % 10)
    return [
        (Sentence("drill.ask", {"x": left, "y": right}),),
        (
            Sentence("drill.tens", {"x": tens[0], "y": tens[1], "z": sum(tens)}),
            Sentence("drill.ones", {"x": ones[0], "y": ones[1], "z": sum(ones)}),
            Sentence("drill.answer", {"x": sum(tens), "y": sum(ones), "z": left + right}),
        ),
    ]
