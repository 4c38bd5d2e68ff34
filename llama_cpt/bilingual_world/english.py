"""English: words, their forms, and how sentences are finished."""

import re
from typing import Any

from llama_cpt.bilingual_world import lists
from llama_cpt.bilingual_world.english_sentences import FACTS, QUESTIONS, SUMS, WRITINGS
from llama_cpt.bilingual_world.english_stories import STORIES, TALK
from llama_cpt.bilingual_world.language import Language, templates
from llama_cpt.bilingual_world.plan import Clock, Count, Mention, Pair

_SMALL = (
    "no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()

# Uncounted by themselves: (bare, one of it, several, whether the verb is plural).
_PORTIONS = {
    "bread": ("bread", "loaf of bread", "loaves of bread", False),
    "cheese": ("cheese", "piece of cheese", "pieces of cheese", False),
    "rice": ("rice", "bowl of rice", "bowls of rice", False),
    "noodles": ("noodles", "bowl of noodles", "bowls of noodles", True),
    "honey": ("honey", "jar of honey", "jars of honey", False),
    "jam": ("jam", "jar of jam", "jars of jam", False),
}
_PLURALS = {
    "knife": "knives",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "goose": "geese",
    "mouse": "mice",
    "child": "children",
    "box": "boxes",
    "fox": "foxes",
    "bench": "benches",
    "scarf": "scarves",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "peach": "peaches",
}
_WORDS = {
    "harrow_bay": "Harrow Bay",
    "ilva": "the Ilva",
    "sorn": "the Sorn",
    "merrit": "the Merrit",
    "tessa": "the Tessa",
    "bray": "the Bray",
    "lune": "the Lune",
    "grey_crown": "the Grey Crown",
    "ansel": "Mount Ansel",
    "pine_ridge": "Pine Ridge",
    "eagle_peak": "Eagle Peak",
    "long_hill": "the Long Hill",
    "old_kern": "Old Kern",
    "coin_box": "money box",
    "postman": "letter carrier",
    "ferryman": "ferry captain",
    "fisher": "fishing hand",
    "baked": "baked food",
    "sweets": "sweet food",
    "biscuit_pet": "Biscuit",
    "farm": "on a farm",
    "woods": "in the woods",
    "pond": "by a pond",
    "house_home": "in a house",
    "burrow": "in a burrow",
    "mountains": "in the mountains",
    "meadow": "in a meadow",
    "barn": "in a barn",
    "small_fish": "small fish",
    "scraps": "kitchen scraps",
    "under_bench": "under a bench",
    "behind_door": "behind a door",
    "between_stones": "between two stones",
    "tall_grass": "in the tall grass",
    "beside_well": "beside an old well",
    "under_leaves": "under a heap of leaves",
    "on_wall": "on a low wall",
    "basket_bottom": "at the bottom of a basket",
    "behind_barrel": "behind a barrel",
    "under_stairs": "under the stairs",
}
# "preposition name"; the rest are "at".
_SPOTS = {
    "library": "in the library",
    "farmyard": "in the farmyard",
    "garden": "in the garden",
    "pasture": "on the pasture",
    "studio": "in the studio",
    "orchard": "in the orchard",
    "yard": "in the builders' yard",
    "museum": "in the museum",
    "park": "in the park",
    "bridge": "on the bridge",
    "square": "in the square",
    "forest": "in the forest",
    "field": "in the field",
}
_ACTIONS = {
    "play_flute": "play the flute",
    "go_fishing": "go fishing",
    "read_stories": "read old stories",
    "climb_hills": "climb hills",
    "collect_stamps": "collect stamps",
    "fly_kites": "fly kites",
    "bake_cakes": "bake cakes",
    "play_chess": "play chess",
    "ride_bicycle": "ride a bicycle",
    "grow_flowers": "grow flowers",
    "watch_birds": "watch birds",
    "write_poems": "write poems",
    "row_boat": "row a boat",
    "mend_clocks": "mend clocks",
    "tell_jokes": "tell jokes",
    "make_puppets": "make puppets",
    "look_stars": "look at the stars",
    "play_drum": "play the drum",
    "pick_mushrooms": "pick mushrooms",
    "draw_maps": "draw maps",
}
_ACTIONS |= {name: name for name in ("swim", "paint", "dance", "sing")}
_DUTIES = """
baker: bake bread before sunrise / teacher: teach children to read / nurse: look after the sick
doctor: make sick people well / fisher: bring in the nets / farmer: plough the fields
carpenter: make tables and doors / blacksmith: shoe horses and forge tools / tailor: sew coats
librarian: keep the books in order / postman: carry letters from door to door
gardener: water the flowers / shepherd: watch over the sheep / miller: grind the grain
potter: shape bowls from clay / painter: paint pictures of the island / clockmaker: mend clocks
cook: cook for the guests / ferryman: take travellers across the water / beekeeper: gather honey
weaver: weave blankets / musician: play for the dancers / builder: build houses and walls
guide: show visitors round
"""
_USES = """
kettle: boil water / key: open a door / bicycle: ride to the next town / clock: tell the time
ring: show a promise / bell: call people together / hammer: drive in nails / saw: cut wood
spade: dig the garden / pot: cook a meal / spoon: stir the tea / needle: sew on a button
knife: peel fruit / coin_box: save money / ladder: reach the roof / flute: play a tune
violin: play at a dance / guitar: accompany a song / boat: cross the river / chair: sit on
table: eat at / bench: rest in the park / broom: sweep the floor / box: keep toys in
puppet: act out a story / pencil: draw and write / drum: beat the time / umbrella: keep off the rain
hat: keep off the sun / coat: keep warm in the wind / tent: sleep outdoors / flag: give a signal
doll: play at home / bag: carry shopping / book: learn new things / kite: play in the wind
map: find the way / notebook: write down ideas / letter: send news to a friend
parcel: send a present / painting: brighten a wall / lantern: light a path / lamp: light a room
mirror: see one's own face / bottle: hold water / telescope: watch the stars / cup: drink tea
plate: serve food / bowl: eat soup / vase: hold flowers / ball: play with friends
boot: walk through mud / belt: hold up trousers / scarf: keep one's neck warm
blanket: keep warm at night / glove: keep one's hands warm / candle: give light in the dark
"""
_PRONOUNS = {
    True: {"he": "she", "his": "her", "him": "her", "himself": "herself"},
    False: {"he": "he", "his": "his", "him": "him", "himself": "himself"},
    "i": {"he": "I", "his": "my", "him": "me", "himself": "myself"},
    "you": {"he": "you", "his": "your", "him": "you", "himself": "yourself"},
}
_PROPER = {*lists.WOMEN, *lists.MEN, *lists.SURNAMES, *lists.TOWNS, *lists.WEEKDAYS}
_PROPER |= {*lists.PET_NAMES} - {"biscuit_pet"}
_BE = {"i": ("am", "was"), "you": ("are", "were")}


def _entries(text: str, suffix: str) -> dict[str, str]:
    pairs = (entry.split(": ") for line in text.strip().splitlines() for entry in line.split(" / "))
    return {f"{name}.{suffix}": phrase for name, phrase in pairs}


_PHRASES = _ACTIONS | _entries(_DUTIES, "duty") | _entries(_USES, "use")


def say(value: Any, form: str) -> str:
    """English for ``value``. Forms of a person: of, to, he, his, him, himself, ``+verb``,
    ``he+verb``, ``?`` (does she); of nouns: s (in general), a, ``+verb``, ``?``; of actions: ing."""
    match value:
        case Mention():
            return _person(value, form)
        case Count(number, thing):
            return f"{_number(number)} {_noun(thing)[1 if number == 1 else 2]}"
        case Clock(hour, minute):
            return f"{hour}:{minute:02d}" if form == "d" else _clock(hour, minute)
        case Pair():
            return "they"
        case 0 if form == "answer":
            return "none"
        case int():
            return f"{value:,}" if form == "d" else _number(value)
    if form in ("at", "to") or value in lists.SPOTS:
        return _spot(value, form)
    if value in _PHRASES:
        return _participle(_PHRASES[value]) if form == "ing" else _PHRASES[value]
    return _thing(value, form)


def _person(who: Mention, form: str) -> str:
    person, how = who.person, who.how
    pronouns = _PRONOUNS[how if how in ("i", "you") else person.woman]
    plain = how in ("again", "i", "you")
    name = pronouns["he"] if plain else say(person.name, "")
    if how == "full":
        name = f"{name} {say(person.surname, '')}"
    if form.startswith("he+"):
        return f"{pronouns['he']} {_verb(form[3:], how)}"
    if form.startswith("+"):
        return f"{name} {_verb(form[1:], how)}"
    if form in pronouns:
        return pronouns[form]
    match form:
        case "of":
            return pronouns["his"] if plain else f"{name}'s" if name[-1] != "s" else f"{name}'"
        case "to":
            return pronouns["him"] if plain else name
        case "?":
            return f"{'do' if how in _BE else 'does'} {name}"
        case "be?":
            return f"{_BE.get(how, ('is',))[0]} {name}"
    return name


def _verb(verb: str, how: str = "") -> str:
    """Agrees with the subject: third person but for I and you."""
    if verb in ("be", "was"):
        return _BE.get(how, ("is", "was"))[verb == "was"]
    if how in _BE:
        return verb
    if verb == "have":
        return "has"
    if verb.endswith(("s", "sh", "ch", "x", "o")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if verb.endswith("y") and verb[-2] not in "aeiou" else f"{verb}s"


def _participle(phrase: str) -> str:
    verb, _, rest = phrase.partition(" ")
    stem = {"swim": "swimm"}.get(verb, verb[:-1] if verb[-1] == "e" else verb)
    return f"{stem}ing {rest}".rstrip()


def _noun(name: str) -> tuple[str, str, str, bool]:
    """(bare, one, several, whether its general sense takes a plural verb)."""
    if name in _PORTIONS:
        return _PORTIONS[name]
    word = _WORDS.get(name, name.replace("_", " "))
    if word in _PLURALS:
        return word, word, _PLURALS[word], True
    plural = f"{word[:-1]}ies" if word.endswith("y") and word[-2] not in "aeiou" else f"{word}s"
    return word, word, plural, True


def _thing(name: str, form: str) -> str:
    if name in _PROPER:
        return _WORDS.get(name, name.title())
    counted = name in lists.FOODS or name in lists.ANIMALS or name in lists.THINGS
    if name in ("fruit", "vegetable") and form == "answer":
        return f"a {name}"
    if not counted:
        return _WORDS.get(name, name.replace("_", " "))
    bare, one, several, plural = _noun(name)
    general = several if plural and name not in _PORTIONS else bare
    if form.startswith("+"):
        verb = form[1:]
        if verb == "be":
            return f"{general} {'are' if plural else 'is'}"
        return f"{general} {verb if plural else _verb(verb)}"
    match form:
        case "a":
            return f"a {one}"
        case "answer":
            return f"a {one}" if name in lists.ANIMALS else general
        case "s":
            return general
        case "?":
            return f"{'do' if plural else 'does'} {general}"
        case "be?":
            return f"{'are' if plural else 'is'} {general}"
    return bare


def _spot(name: str, form: str) -> str:
    phrase = _SPOTS.get(name, f"at the {name.replace('_', ' ')}")
    preposition, _, place = phrase.partition(" ")
    return {"at": phrase, "to": f"to {place}", "answer": f"{preposition} {place}"}.get(form, place)


def _number(number: int) -> str:
    return _SMALL[number] if number <= 20 else f"{number:,}"


def _clock(hour: int, minute: int) -> str:
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    shown = _SMALL[(hour - 1) % 12 + 1]
    match minute:
        case 0:
            text = f"{shown} o'clock"
        case 15:
            text = f"a quarter past {shown}"
        case 30:
            text = f"half past {shown}"
        case _:
            text = f"a quarter to {_SMALL[hour % 12 + 1]}"
    return f"{text} {part}"


_FIRST = re.compile(r'(^"?|[.!?] "?|: ")([a-z])')
_SPACES = re.compile(r" +(?=[ .,!?])")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeio]|u(?!se|ni))")


def _finish(text: str) -> str:
    text = _ARTICLE.sub(r"\1n ", _SPACES.sub("", text))
    return _FIRST.sub(lambda match: match[1] + match[2].upper(), text)


LANGUAGE = Language(
    code="en",
    space=" ",
    sentences=templates(FACTS, QUESTIONS, SUMS, WRITINGS, TALK, STORIES),
    say=say,
    finish=_finish,
)
