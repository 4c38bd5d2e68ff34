"""The identifiers of the world, and what is true of things by their nature."""

WOMEN = tuple(
    "lina mara tilda nora ines petra sofi greta ada vera ilsa runa cora della elin freya hanna ivy "
    "juna kaia lotte mina nella odette pia rosa sela tova una willa yana zoe alma bela celia dora "
    "edda flora gilda hester irma josie kira luna maeve nadia olga paula".split()
)
MEN = tuple(
    "tomas bram emil jonas arlo casper dario edwin felix gustav hugo ivan jasper kolya lars milo "
    "nils oskar pavel quinn rafi stefan theo ulric viktor walter yoram zeno anton boris conrad "
    "dmitri elias finn gideon henrik isak jory karel leon matteo noel otto pieter ruben simon "
    "tobias wendel".split()
)
SURNAMES = tuple(
    "marlow fenwick holt brandt castel dorn ebner farrow garrick hollis ivers jessop kessler "
    "lindqvist moray norrell oakes pryce rennick sorrel thorne ullman vance wick".split()
)
TOWNS = tuple(
    "velmar orsel tolby marn kesterin lowen harrow_bay pellin dunmere sarova brindle quillan "
    "nerith foxley galden isker jorva rillstone umberly wexcombe yarrow zelm cobblen elvane".split()
)
TOWN_KINDS = ("village", "town", "port", "city")
RIVERS = ("ilva", "sorn", "merrit", "tessa", "bray", "lune")
HILLS = ("grey_crown", "ansel", "pine_ridge", "eagle_peak", "long_hill", "old_kern")
DIRECTIONS = tuple("north northeast east southeast south southwest west northwest".split())
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
SEASONS = ("spring", "summer", "autumn", "winter")
PARTS_OF_DAY = ("morning", "afternoon", "evening")
WEATHERS = ("sunny", "rainy", "windy", "snowy", "foggy", "cloudy", "stormy", "hot")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey", "purple", "pink")
KIN = ("mother", "father", "daughter", "son", "wife", "husband")

MATERIALS = ("metal", "wood", "cloth", "paper", "glass", "clay", "leather", "wool", "wax")
_THINGS = {
    "metal": "kettle key bicycle clock ring bell hammer saw spade pot spoon knife needle coin_box",
    "wood": "ladder flute violin guitar boat chair table bench broom box puppet pencil drum",
    "cloth": "umbrella hat coat tent flag doll bag",
    "paper": "book kite map notebook letter parcel painting lantern",
    "glass": "lamp mirror bottle telescope",
    "clay": "cup plate bowl vase",
    "leather": "ball boot belt",
    "wool": "scarf blanket glove",
    "wax": "candle",
}
MATERIAL_OF = {thing: material for material, names in _THINGS.items() for thing in names.split()}
THINGS = tuple(MATERIAL_OF)
HANDMADE = tuple("box puppet kite scarf doll bag candle painting bowl vase blanket hat".split())
PRODUCTS = ("cheese", "honey", "apple", "plum", "fish", "boat", "vase", "bell", "lamp", "scarf")

FOOD_KINDS = ("fruit", "vegetable", "baked", "sweets")
TASTES = ("sweet", "sour", "salty", "fresh", "mild")
FOOD_FACTS = {
    "apple": ("fruit", "sweet", "red"),
    "pear": ("fruit", "sweet", "green"),
    "plum": ("fruit", "sour", "purple"),
    "peach": ("fruit", "sweet", "pink"),
    "lemon": ("fruit", "sour", "yellow"),
    "cherry": ("fruit", "sweet", "red"),
    "grape": ("fruit", "sweet", "purple"),
    "melon": ("fruit", "fresh", "green"),
    "banana": ("fruit", "sweet", "yellow"),
    "carrot": ("vegetable", "sweet", "red"),
    "potato": ("vegetable", "mild", "brown"),
    "cabbage": ("vegetable", "mild", "green"),
    "tomato": ("vegetable", "sour", "red"),
    "cucumber": ("vegetable", "fresh", "green"),
    "pumpkin": ("vegetable", "sweet", "yellow"),
    "bread": ("baked", "mild", "brown"),
    "bun": ("baked", "mild", "white"),
    "cake": ("baked", "sweet", "yellow"),
    "pie": ("baked", "salty", "brown"),
    "biscuit": ("baked", "sweet", "brown"),
    "honey": ("sweets", "sweet", "yellow"),
    "jam": ("sweets", "sweet", "red"),
}
CROPS = tuple(name for name, (kind, *_) in FOOD_FACTS.items() if kind in ("fruit", "vegetable"))
_OTHER_FOODS = ("cheese", "egg", "fish", "mushroom", "dumpling", "noodles", "rice", "pancake")
FOODS = (*FOOD_FACTS, *_OTHER_FOODS)

MEALS = ("grass", "small_fish", "seeds", "nuts", "insects", "meat", "leaves", "nectar", "scraps")
ANIMAL_HOMES = ("farm", "woods", "pond", "house_home", "burrow", "mountains", "meadow", "barn")
ANIMAL_FACTS = {
    "cat": (4, "small_fish", "house_home"),
    "dog": (4, "meat", "house_home"),
    "horse": (4, "grass", "farm"),
    "cow": (4, "grass", "farm"),
    "goat": (4, "leaves", "mountains"),
    "sheep": (4, "grass", "meadow"),
    "rabbit": (4, "grass", "burrow"),
    "duck": (2, "seeds", "pond"),
    "goose": (2, "grass", "pond"),
    "hen": (2, "seeds", "farm"),
    "owl": (2, "meat", "barn"),
    "fox": (4, "meat", "burrow"),
    "deer": (4, "leaves", "woods"),
    "bear": (4, "small_fish", "mountains"),
    "squirrel": (4, "nuts", "woods"),
    "hedgehog": (4, "insects", "meadow"),
    "frog": (4, "insects", "pond"),
    "turtle": (4, "leaves", "pond"),
    "bee": (6, "nectar", "meadow"),
    "butterfly": (6, "nectar", "meadow"),
    "spider": (8, "insects", "barn"),
    "swallow": (2, "insects", "barn"),
    "donkey": (4, "grass", "farm"),
    "pig": (4, "scraps", "farm"),
    "mouse": (4, "seeds", "barn"),
    "snake": (0, "meat", "burrow"),
}
ANIMALS = tuple(ANIMAL_FACTS)
PETS = ("cat", "dog", "rabbit", "turtle", "duck", "goat", "hen", "donkey", "mouse")
PET_NAMES = tuple(
    "biscuit_pet pepper snowball button shadow ginger pebble clover whiskers marble poppy rusty "
    "star cloud nutmeg bean".split()
)

WORKPLACES = {
    "baker": "bakery",
    "teacher": "school",
    "nurse": "hospital",
    "doctor": "hospital",
    "fisher": "harbour",
    "farmer": "farmyard",
    "carpenter": "workshop",
    "blacksmith": "smithy",
    "tailor": "shop",
    "librarian": "library",
    "postman": "post_office",
    "gardener": "garden",
    "shepherd": "pasture",
    "miller": "mill",
    "potter": "workshop",
    "painter": "studio",
    "clockmaker": "shop",
    "cook": "inn",
    "ferryman": "harbour",
    "beekeeper": "orchard",
    "weaver": "workshop",
    "musician": "theatre",
    "builder": "yard",
    "guide": "museum",
}
JOBS = tuple(WORKPLACES)
_OPEN_SPOTS = ("market", "park", "bridge", "square", "station", "well", "forest", "lake", "field")
SPOTS = tuple(dict.fromkeys((*WORKPLACES.values(), *_OPEN_SPOTS)))
OUTDOORS = ("park", "square", "forest", "lake", "field", "garden", "orchard", "pasture")
HIDING_PLACES = tuple(
    "under_bench behind_door between_stones tall_grass beside_well under_leaves on_wall "
    "basket_bottom behind_barrel under_stairs".split()
)
HOBBIES = tuple(
    "play_flute swim go_fishing paint read_stories dance climb_hills collect_stamps fly_kites "
    "bake_cakes sing play_chess ride_bicycle grow_flowers watch_birds write_poems row_boat "
    "mend_clocks tell_jokes make_puppets look_stars play_drum pick_mushrooms draw_maps".split()
)

SAD_CAUSES = {
    "lost": "sad",
    "test": "disappointed",
    "moved": "lonely",
    "ill_pet": "worried",
    "rain": "disappointed",
    "quarrel": "sad",
    "broken": "ashamed",
    "dark": "afraid",
    "laughed": "angry",
    "speech": "nervous",
    "left_out": "lonely",
    "tired_work": "tired",
    "waiting": "bored",
    "grandmother": "worried",
}
GLAD_CAUSES = {
    "found": "happy",
    "prize": "proud",
    "visit": "excited",
    "help": "grateful",
    "learned": "proud",
    "gift": "surprised",
    "well_again": "relieved",
    "quiet": "calm",
    "friend_new": "happy",
    "snow": "excited",
}
FEELINGS = tuple(dict.fromkeys((*SAD_CAUSES.values(), *GLAD_CAUSES.values())))
