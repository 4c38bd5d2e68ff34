"""English words for the identifiers of the world; an identifier not listed is its own word."""

from examples.bilingual_world import lists

SMALL_NUMBERS = (
    "no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()

# Uncounted by themselves: (bare, one of it, several, whether the verb is plural).
PORTIONS = {
    "bread": ("bread", "loaf of bread", "loaves of bread", False),
    "cheese": ("cheese", "piece of cheese", "pieces of cheese", False),
    "rice": ("rice", "bowl of rice", "bowls of rice", False),
    "noodles": ("noodles", "bowl of noodles", "bowls of noodles", True),
    "honey": ("honey", "jar of honey", "jars of honey", False),
    "jam": ("jam", "jar of jam", "jars of jam", False),
}
PLURALS = {
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
WORDS = {
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
SPOTS = {
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
PROPER = {*lists.WOMEN, *lists.MEN, *lists.SURNAMES, *lists.TOWNS, *lists.WEEKDAYS}
PROPER |= {*lists.PET_NAMES} - {"biscuit_pet"}


def _entries(text: str, suffix: str) -> dict[str, str]:
    pairs = (entry.split(": ") for line in text.strip().splitlines() for entry in line.split(" / "))
    return {f"{name}.{suffix}": phrase for name, phrase in pairs}


PHRASES = _ACTIONS | _entries(_DUTIES, "duty") | _entries(_USES, "use")
