#!/usr/bin/env python3
"""Write configs/sample/train.jsonl: some 350 kB of English that the small presets learn from, the same bytes each time.

The text is composed here, by a grammar with its own vocabulary (no foreign text, so no licence question): word problems
with worked solutions, conversions of units, small scenes, reports from a cluster, and explanations of its terms. Sums
are computed, not written, so every solution is right.

    python scripts/make_sample_text.py [FILE]
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

from sample_words import (
    ACTIONS,
    ADJECTIVES,
    CONCEPTS,
    CONTAINERS,
    EVENTS,
    GAINS,
    GOODS,
    LOSSES,
    MANNERS,
    NAMES,
    OCCASIONS,
    PLACES,
    THINGS,
    THOUGHTS,
    TRADES,
    UNITS,
)

SEED = 20240229
TARGET_BYTES = 350_000


def story_gain_lose(rng: random.Random) -> str:
    """A first amount, a gain and a loss."""
    name, thing, trade = rng.choice(NAMES), rng.choice(GOODS), rng.choice(TRADES)
    start, more = rng.randrange(12, 400), rng.randrange(5, 200)
    less = rng.randrange(3, start + more)
    return (
        f"{rng.choice(OCCASIONS)}, {name} the {trade} has {start} {thing} at {rng.choice(PLACES)}. {name} "
        f"{rng.choice(GAINS)} {more} more and then {rng.choice(LOSSES)} {less}. How many {thing} are left?\n"
        f"Solution: first there are {start} + {more} = {start + more} {thing}. "
        f"Then {start + more} - {less} = {start + more - less} remain. The answer is {start + more - less}."
    )


def story_share(rng: random.Random) -> str:
    """Equal shares with a remainder."""
    one, two = rng.sample(NAMES, 2)
    thing, box = rng.choice(GOODS), rng.choice(CONTAINERS)
    size, total = rng.randrange(3, 25), rng.randrange(60, 900)
    whole, rest = divmod(total, size)
    tail = f"and {rest} {thing} are left over" if rest else "and nothing is left over"
    return (
        f"{one} and {two} pack {total} {thing} into {box} that hold {size} each. How many {box} can they fill?\n"
        f"Solution: {total} divided by {size} is {whole} with a remainder of {rest}, because {whole} x {size} = "
        f"{whole * size} and {total} - {whole * size} = {rest}. They fill {whole} {box}, {tail}."
    )


def story_price(rng: random.Random) -> str:
    """A purchase and the change."""
    name, (first, second) = rng.choice(NAMES), rng.sample(GOODS, 2)
    n, m, p, q = (rng.randrange(2, 15) for _ in range(4))
    cost = n * p + m * q
    paid = (cost // 50 + 1) * 50
    return (
        f"At {rng.choice(PLACES)}, {first} cost {p} coins each and {second} cost {q} coins each. {name} takes {n} "
        f"{first} and {m} {second} and pays with {paid} coins. How much change does {name} get back?\n"
        f"Solution: the {first} cost {n} x {p} = {n * p} coins and the {second} cost {m} x {q} = {m * q} coins, "
        f"together {n * p} + {m * q} = {cost}. The change is {paid} - {cost} = {paid - cost} coins."
    )


def story_travel(rng: random.Random) -> str:
    """Speed, time and distance."""
    name, speed, hours = rng.choice(NAMES), rng.randrange(4, 110), rng.randrange(2, 9)
    (start, end), pause = rng.sample(PLACES, 2), rng.randrange(10, 60)
    return (
        f"{name} travels from {start} to {end} at {speed} kilometres an hour for {hours} hours, with one pause of "
        f"{pause} minutes. How far is the way, and how long does the journey take?\n"
        f"Solution: distance is speed times time, {speed} x {hours} = {speed * hours} kilometres. The pause adds to "
        f"the time but not to the distance: {hours} hours and {pause} minutes, which is {hours * 60 + pause} minutes."
    )


def convert(rng: random.Random) -> str:
    """A conversion of units."""
    one, many, factor, small = rng.choice(UNITS)
    count = rng.randrange(2, 60)
    return (
        f"How many {small} are {count} {many}?\n"
        f"Solution: one {one} is {factor:,} {small}. So we multiply: {count} x {factor:,} = {count * factor:,} "
        f"{small}. To go back, divide {count * factor:,} by {factor:,} and get {count}."
    )


def average(rng: random.Random) -> str:
    """A mean of a few measurements."""
    name, unit = rng.choice(NAMES), rng.choice(("seconds", "degrees", "points", "pages", "litres", "watts"))
    values = [rng.randrange(5, 95) for _ in range(rng.choice((3, 4, 5)))]
    values[-1] += -sum(values) % len(values)
    listed = ", ".join(map(str, values[:-1])) + f" and {values[-1]}"
    return (
        f"{name} measures {listed} {unit}. What is the mean?\n"
        f"Solution: the sum is {' + '.join(map(str, values))} = {sum(values)}. There are {len(values)} values, so "
        f"the mean is {sum(values)} / {len(values)} = {sum(values) // len(values)} {unit}."
    )


def explain(rng: random.Random) -> str:
    """What a term means, set beside another one."""
    (term, meaning, purpose), (other, other_meaning, other_purpose) = rng.sample(CONCEPTS, 2)
    openings = (
        f"{rng.choice(NAMES)} asks what {term} is.",
        f"A {rng.choice(TRADES)} who has never seen a cluster may wonder what {term} is.",
        f"What do we mean by {term}?",
        f"Here is one more word to learn: {term}.",
    )
    bodies = (
        f"It is {meaning}. We want it so that {purpose}.",
        f"By this we mean {meaning}. Thanks to it, {purpose}.",
        f"In plain words, it is {meaning}; with it, {purpose}.",
    )
    closings = (
        f"It is not the same as {other}, which is {other_meaning}.",
        f"Together with {other} it helps, for then {other_purpose}.",
        f"Compare it with {other}: that is {other_meaning}.",
    )
    return f"{rng.choice(openings)} {rng.choice(bodies)} {rng.choice(closings)}"


def scene(rng: random.Random) -> str:
    """A few sentences about people and things."""
    name, trade = rng.choice(NAMES), rng.choice(TRADES)
    first, second, third = rng.sample(THINGS, 3)
    one, two, three = rng.sample(ADJECTIVES, 3)
    return (
        f"{rng.choice(OCCASIONS)}, {name} the {trade} {rng.choice(ACTIONS)} the {one} {first} near "
        f"{rng.choice(PLACES)}, {rng.choice(MANNERS)}. {rng.choice(THOUGHTS)} The {two} {second} "
        f"{rng.choice(('stands', 'lies', 'waits', 'remains', 'appears'))} beside the {three} {third}, and {name} "
        f"{rng.choice(ACTIONS)} it {rng.choice(MANNERS)}. {rng.choice(THOUGHTS)}"
    )


def report(rng: random.Random) -> str:
    """A short report of a training run, whose figures agree."""
    every, saved = rng.choice((10, 20, 25, 50, 100)), rng.randrange(3, 40)
    lost, seconds = rng.randrange(1, every), rng.randrange(2, 30)
    event = rng.choice(EVENTS).format(a=rng.randrange(2, 32), b=rng.randrange(2, 48))
    ends = (
        "Nothing else was lost.",
        "The losses after the restart were the same as before.",
        "The run then went on to its end.",
    )
    return (
        f"Report by {rng.choice(NAMES)}. The run saved every {every} steps. At step {every * saved + lost} {event}. "
        f"The newest checkpoint was the one of step {every * saved}, so {every * saved + lost} - {every * saved} = "
        f"{lost} steps had to be done again. At {seconds} seconds a step this cost {lost} x {seconds} = "
        f"{lost * seconds} seconds. {rng.choice(ends)}"
    )


MAKERS: tuple[tuple[Callable[[random.Random], str], int], ...] = (
    (story_gain_lose, 3),
    (story_share, 2),
    (story_price, 2),
    (story_travel, 2),
    (convert, 2),
    (average, 2),
    (explain, 4),
    (scene, 7),
    (report, 2),
)


def rows(seed: int = SEED, target_bytes: int = TARGET_BYTES) -> list[str]:
    """Return the lines of the file, without repeats."""
    rng = random.Random(seed)
    bag = [maker for maker, weight in MAKERS for _ in range(weight)]
    seen: set[str] = set()
    lines: list[str] = []
    size = 0
    while size < target_bytes:
        text = rng.choice(bag)(rng)
        if text not in seen:
            seen.add(text)
            lines.append(json.dumps({"text": text}))
            size += len(lines[-1]) + 1
    return lines


def main() -> None:
    """Write the file."""
    default = Path(__file__).resolve().parent.parent / "configs" / "sample" / "train.jsonl"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in rows()))


if __name__ == "__main__":
    main()
