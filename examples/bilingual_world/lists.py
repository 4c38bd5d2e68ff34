"""The identifiers of the world and the properties of things, read from ``world.toml``."""

from examples.bilingual_world.data_files import read_table

_DATA = read_table("world.toml")


def _names(key: str) -> tuple[str, ...]:
    return tuple(_DATA[key])


WOMEN = _names("women")
MEN = _names("men")
SURNAMES = _names("surnames")
TOWNS = _names("towns")
TOWN_KINDS = _names("town_kinds")
RIVERS = _names("rivers")
HILLS = _names("hills")
PRODUCTS = _names("products")
DIRECTIONS = _names("directions")
"""The eight compass points, clockwise from north."""
WEEKDAYS = _names("weekdays")
SEASONS = _names("seasons")
PARTS_OF_DAY = _names("parts_of_day")
WEATHERS = _names("weathers")
COLORS = _names("colors")
KIN = _names("kin")

MATERIAL_OF: dict[str, str] = {
    thing: material for material, things in _DATA["things"].items() for thing in things
}
"""The material of each thing."""
MATERIALS = tuple(_DATA["things"])
THINGS = tuple(MATERIAL_OF)
HANDMADE = _names("handmade")

FOOD_FACTS: dict[str, tuple[str, str, str]] = {
    food: (kind, taste, color) for food, (kind, taste, color) in _DATA["foods"].items()
}
"""The kind, taste and color of each food."""
FOOD_KINDS = _names("food_kinds")
TASTES = _names("tastes")
CROPS = tuple(name for name, (kind, *_) in FOOD_FACTS.items() if kind in ("fruit", "vegetable"))
FOODS = (*FOOD_FACTS, *_names("other_foods"))

ANIMAL_FACTS: dict[str, tuple[int, str, str]] = {
    animal: (legs, meal, home) for animal, (legs, meal, home) in _DATA["animals"].items()
}
"""The number of legs, the meal and the home of each animal."""
MEALS = _names("meals")
ANIMAL_HOMES = _names("animal_homes")
ANIMALS = tuple(ANIMAL_FACTS)
PETS = _names("pets")
PET_NAMES = _names("pet_names")

WORKPLACES: dict[str, str] = _DATA["workplaces"]
"""The workplace of each job."""
JOBS = tuple(WORKPLACES)
SPOTS = tuple(dict.fromkeys((*WORKPLACES.values(), *_names("open_spots"))))
OUTDOORS = _names("outdoors")
HIDING_PLACES = _names("hiding_places")
HOBBIES = _names("hobbies")

SAD_CAUSES: dict[str, str] = _DATA["sad_causes"]
"""The feeling that each sad event causes."""
GLAD_CAUSES: dict[str, str] = _DATA["glad_causes"]
"""The feeling that each glad event causes."""
FEELINGS = tuple(dict.fromkeys((*SAD_CAUSES.values(), *GLAD_CAUSES.values())))

PLOTS: dict[str, tuple[str, ...]] = {
    plot: tuple(entry["steps"]) for plot, entry in _DATA["plots"].items()
}
"""The steps of each story plot. A step that starts with a question mark is optional."""
FEELING_AT_END: dict[str, str] = {plot: entry["feeling"] for plot, entry in _DATA["plots"].items()}
"""The feeling of the main person at the end of each story plot."""
