"""The vocabulary of the sample text; the grammar is in make_sample_text.py. A line or a comma ends an entry."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """Return the entries of a block of words, set apart by commas or line ends."""
    return tuple(word.strip() for word in text.replace("\n", ",").split(",") if word.strip())


NAMES = words("""
Amara, Bashir, Chiara, Dmitri, Elif, Farid, Greta, Hiro, Ines, Jonas, Kavya, Leila, Mateo, Nadia, Olga, Pablo, Qiang
Rosa, Samir, Tomas, Uma, Viktor, Wanda, Ximena, Yusuf, Zofia, Anders, Bianca, Celine, Dario, Esther, Felix, Goran
Hanna, Idris, Juno, Katarina, Lorenzo, Miriam, Noor, Oskar, Priya, Rahel, Stefan, Tamar, Ulrich, Vera, Wim, Yara, Zeno
""")
TRADES = words("""
baker, carpenter, librarian, gardener, teacher, sailor, weaver, nurse, painter, farmer, beekeeper, potter, tailor
cyclist, engineer, astronomer, chemist, printer, glazier, miller, blacksmith, surveyor, archivist, plumber, botanist
""")
PLACES = words("""
the market, the harbour, the school, the workshop, the old mill, the village hall, the museum, the railway station
the orchard, the laboratory, the bakery on the corner, the town library, the river bank, the observatory, the lighthouse
the vineyard, the post office, the botanical garden, the shipyard, the monastery, the power plant, the theatre
""")
GOODS = words("""
apples, loaves, pencils, candles, bricks, tiles, notebooks, lemons, buttons, seedlings, postcards, jars, baskets, plums
lanterns, blankets, maps, bottles, stamps, marbles, walnuts, ribbons, spoons, kites, mirrors, hammers, envelopes
cushions, whistles, thimbles, pumpkins, carrots, umbrellas, ropes, screws, magnets, lenses, pebbles, feathers, onions
""")
CONTAINERS = words("boxes, crates, bags, trays, shelves, baskets, drawers, cartons, sacks, chests, barrels, buckets")
OCCASIONS = words("""
On a rainy morning, Early on Monday, After the summer holidays, Shortly before noon, On the first day of spring
During the long winter, When the shop opened, Late in the evening, Before the festival, On a quiet Sunday
While the snow was melting, Towards the end of October, On the way home, Just after breakfast, Between two storms
""")
GAINS = words("buys, receives, finds, is given, collects, orders, inherits, brings along")
LOSSES = words("sells, gives away, uses, loses, lends, sends to a friend, breaks, throws out")
ADJECTIVES = words("""
ancient, bright, careful, distant, empty, faithful, gentle, hollow, idle, jagged, keen, lively, muddy, narrow, orderly
patient, quiet, rough, silver, tall, uneven, velvet, wooden, yellow, abandoned, bitter, crooked, dusty, elegant, fragile
golden, humble, invisible, joyful, knotted, lonely, marble, nervous, obedient, polished, remote, sleepy, thirsty
unfinished, vast, weathered, curious, delicate, enormous, familiar, generous, honest, innocent, modest, mysterious
peculiar, reliable, sturdy, transparent, violet, wandering, cheerful, foreign, shallow, solemn, temporary, ordinary
""")
THINGS = words("""
bridge, clock, garden, window, letter, staircase, compass, engine, valley, mountain, telescope, violin, ladder, chimney
fountain, carriage, meadow, island, tunnel, printing press, windmill, waterfall, notebook, calendar, barometer, balcony
cathedral, sailing boat, greenhouse, furnace, wardrobe, chessboard, microscope, caravan, hedge, aqueduct, anvil
drawbridge, weather vane, hourglass, loom, tapestry, cupboard, thermometer, glacier, forest, quarry, canal, lantern
typewriter, cellar, orchestra, parachute, pendulum, sundial, turbine, workbench, bicycle, blueprint, locomotive, harp
""")
ACTIONS = words("""
measures, repairs, describes, remembers, photographs, decorates, inspects, sketches, cleans, discovers, abandons
protects, illuminates, examines, rebuilds, admires, carries, studies, forgets, imagines, restores, surrounds, crosses
watches, polishes, hides, guards, observes, designs, explores, dismantles, catalogues, dreams of, explains, borrows
""")
MANNERS = words("""
slowly, with great care, without a word, every Thursday, for the second time, in spite of the wind, by candlelight
as if nothing had happened, from a safe distance, before anyone else is awake, under a grey sky, with borrowed tools
until the bells ring, for no particular reason, with steady hands, almost by accident, in complete silence
against all advice, together with the neighbours, whenever the weather allows it, long after sunset, step by step
""")
THOUGHTS = words("""
Nobody knows who began it.
It would take a whole chapter to describe the consequences.
The younger children were delighted; their grandparents were suspicious.
A week later the newspaper printed a short article about it.
What seemed impossible became an agreeable habit.
Everything depends upon patience and a sufficiently sharp pencil.
That afternoon the temperature dropped below zero.
Experience suggests that the simplest explanation is usually correct.
The committee will discuss the question again next year.
Perhaps the answer was hidden in the previous paragraph.
Knowledge grows when it is divided among several people.
The same principle applies to languages and to music.
In the beginning there was considerable confusion.
Fortunately the instructions were translated twice.
One should always leave enough space for surprises.
The quarrel ended with laughter and hot soup.
Such discoveries rarely happen in a straight line.
Even the smallest improvement was celebrated with cake.
Afterwards they wrote down the measurements and compared them.
Beyond the hills one could hear thunder.
""")
EVENTS = words("""
the power of node {a} failed
a disk on node {a} was full
the time limit of {b} hours came near
a more urgent job took {a} machines
an operator moved the job to another rack
the network was slow for {b} minutes
memory on node {a} reported an error that could not be corrected
the file server did not answer for {b} minutes
""")
# one, many, how many of the smaller unit make the larger one, smaller unit
UNITS = (
    ("kilometre", "kilometres", 1000, "metres"),
    ("hour", "hours", 60, "minutes"),
    ("minute", "minutes", 60, "seconds"),
    ("kilogram", "kilograms", 1000, "grams"),
    ("day", "days", 24, "hours"),
    ("week", "weeks", 7, "days"),
    ("metre", "metres", 100, "centimetres"),
    ("litre", "litres", 1000, "millilitres"),
    ("dozen", "dozen", 12, "pieces"),
    ("kibibyte", "kibibytes", 1024, "bytes"),
    ("gibibyte", "gibibytes", 1024, "mebibytes"),
    ("byte", "bytes", 8, "bits"),
    ("year", "years", 12, "months"),
    ("tonne", "tonnes", 1000, "kilograms"),
    ("century", "centuries", 100, "years"),
    ("terabyte", "terabytes", 1000, "gigabytes"),
)
_CONCEPTS = """
a checkpoint | a copy of all that training needs to go on, weights and data position included | a run that is stopped \
loses only the steps since the last one
a shard | the part of a larger whole that one process keeps | no single device has to hold all of it
a gradient | the direction in which each weight should move to lower the loss | one small step improves the model
a rank | the number by which a process knows itself among the others | each of them takes its own share of the work
a barrier | a point that no process passes before all have reached it | nobody reads a file that is half written
a scheduler | the program that decides which job runs where and when | many people can share one cluster fairly
the learning rate | the length of the step taken along the gradient | training is neither slow nor unstable
warm-up | the first part of a schedule, in which the learning rate rises | the early, noisy gradients do little harm
a collective | an operation that all processes perform together, such as a sum | they agree on one result
preemption | the act of taking machines from a job for a more urgent one | the cluster serves what matters most
a heartbeat | a sign of life that a process writes now and then | one that hangs is told apart from one that works
a tokenizer | the part that cuts text into pieces and numbers them | a model can read words it has never seen whole
packing | the habit of laying several short documents into one sequence | no computation is wasted on padding
an optimizer state | what the optimizer remembers of past gradients | its steps become smoother and better scaled
a manifest | a list of files with the size and digest of each | damage is noticed before it is used
a digest | a short number computed from all bytes of a file | two files are compared without reading them side by side
bandwidth | the amount of data that passes a line in one second | one knows how long a copy will take
latency | the time until the first answer arrives | one knows why many small messages are slow
a queue | a line in which jobs wait for their turn | no job is forgotten
a node | one machine of a cluster, with its processors and memory | work is spread and a broken part replaced
"""
CONCEPTS = tuple(tuple(part.strip() for part in line.split(" | ")) for line in _CONCEPTS.strip().splitlines())
