"""Numbers in Arabic, alone and with a counted noun.

The number one follows the noun, and two is the dual form of the noun. The numbers from three to ten
precede the plural, and the numbers from eleven to ninety-nine precede the singular in the
accusative. The gender of the numbers from three to ten is the opposite of the noun's gender.
"""

from examples.bilingual_world.arabic_words import FEMININE_COLORS, TENS, UNITS, Noun

# Words with the same spelling in the accusative.
_DIPTOTES = {*FEMININE_COLORS, *FEMININE_COLORS.values()}


def counted(number: int, noun: Noun, case: str = "") -> str:
    """Return the words for a number of things, such as "three books".

    ``case`` is ``acc``, ``gen``, or empty for the nominative. Numbers above 99 are in digits.
    """
    inflect = accusative if case == "acc" else str
    match number % 100:
        case 1 if number == 1:
            words = f"{inflect(noun.one)} {inflect('واحدة' if noun.feminine else 'واحد')}"
        case 2 if number == 2:
            words = _dual(noun.one, case)
        case 0 | 1 | 2:
            words = f"{number} {noun.one}"
        case last if last <= 10:
            words = f"{_shown(number, case, noun.feminine)} {noun.several}"
        case _:
            words = f"{_shown(number, case, noun.feminine)} {accusative(noun.one)}"
    return f"{words}{noun.tail}"


def cardinal(number: int, case: str = "", *, feminine: bool = False) -> str:
    """Return a number from 0 to 99 in words, in the form that precedes a noun.

    ``case`` is the case of the number and ``feminine`` is the gender of the noun.
    """
    ten, unit = divmod(number, 10)
    if number <= 10:
        return _unit(number, case, feminine)
    if number < 20:
        return f"{_teen_unit(unit, case, feminine)} {'عشرة' if feminine else 'عشر'}"
    tens = TENS[ten - 2] + ("ين" if case else "ون")
    if not unit:
        return tens
    return f"{_before_tens(unit, case, feminine)} و{tens}"


def accusative(phrase: str) -> str:
    """Return ``phrase`` in the indefinite accusative.

    Every word gets the ending, except words that are spelled the same in the accusative.
    """
    return " ".join(map(_marked, phrase.split()))


def _marked(word: str) -> str:
    if word.endswith("ة") or "~" in word or word in _DIPTOTES:
        return word
    return f"{word}ً" if word.endswith("اء") else f"{word}ًا"


def _shown(number: int, case: str, feminine: bool) -> str:
    return cardinal(number, case, feminine=feminine) if number < 100 else str(number)


def _unit(number: int, case: str, feminine: bool) -> str:
    if number == 2:
        return ("اثنت" if feminine else "اثن") + ("ين" if case else "ان")
    if not feminine or number < 3:
        return UNITS[number]
    return "ثماني" if number == 8 else UNITS[number].removesuffix("ة")


def _teen_unit(unit: int, case: str, feminine: bool) -> str:
    """Return the unit of a number from 11 to 19.

    The units of 11 and 12 have the gender of the noun. The unit of 12 loses its last letter.
    """
    if unit == 1:
        return "إحدى" if feminine else "أحد"
    word = _unit(unit, case, feminine)
    return word.removesuffix("ن") if unit == 2 else word


def _before_tens(unit: int, case: str, feminine: bool) -> str:
    """Return the unit of a number such as 21, in the form that precedes the ten.

    Unlike a unit that precedes a noun, this unit can be one, and it is spelled differently in the
    accusative.
    """
    if unit == 1 and feminine:
        return "إحدى"
    word = _unit(unit, case, feminine)
    if case == "acc" and unit != 2:
        return accusative(word)
    return "ثمانٍ" if word == "ثماني" else word


def _dual(phrase: str, case: str) -> str:
    ending = "ين" if case else "ان"
    return " ".join(
        f"{word[:-1]}ت{ending}" if word.endswith("ة") else f"{word}{ending}"
        for word in phrase.split()
    )
