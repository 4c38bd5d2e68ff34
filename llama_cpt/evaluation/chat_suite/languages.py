"""Detection of the language of an answer from Unicode scripts and a language identifier.

The rates are those of the Language Confusion Benchmark (Marchisio et al. 2024, arXiv 2406.20052). A
line with fewer than ``LEAST_WORDS`` words is too short to be checked alone. A character of Chinese
or Japanese counts as a word here, because no word segmentation is available.
"""

from collections import Counter
from functools import cache
import re
import unicodedata

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from llama_cpt.evaluation.scores import RIGHT_LANGUAGE

KNOWN = ("ar", "de", "en", "es", "fr", "hi", "id", "it", "ja", "ko", "pt", "ru", "tr", "vi", "zh")
"""Languages among which the identifier chooses: those of the Language Confusion Benchmark."""
LEAST_WORDS = 5
"""Minimum number of words of a line that is checked alone."""
LEAST_SHARE = 0.5
"""Minimum share of words in the script of the language."""
EVERY_LINE, BY_SCRIPT, BY_IDENTIFIER = "every_line", "script", "identifier"
"""Names of the other metrics: all lines are right, and the two parts of the check."""
_SCRIPTS = {"ar": "ARABIC", "hi": "DEVANAGARI", "ja": "KANA", "zh": "HAN"} | {
    "ko": "HANGUL",
    "ru": "CYRILLIC",
}
_BY_CHARACTER = {"CJK": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA"}
# A short text is all kanji by chance; in longer Japanese text, at least this share is kana.
_LEAST_KANA = 0.1
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)


def check_language(answer: str, language: str) -> dict[str, float | str]:
    """Return whether ``answer`` is in ``language``, and the language that was found.

    An answer is right if both its script and the identifier agree with ``language``. If a script
    belongs to a single language of ``KNOWN``, the script alone decides, because the identifier
    often errs on short texts with Chinese characters. ``every_line`` is 1 if each line is also
    right. Code and links are ignored. An answer without a word is wrong.
    """
    text = _CODE.sub(" ", answer)
    lines = [line for line in text.splitlines() if sum(script_words(line).values()) >= LEAST_WORDS]
    right = is_language(text, language)
    return {
        RIGHT_LANGUAGE: float(right),
        EVERY_LINE: float(right and all(is_language(line, language) for line in lines)),
        BY_SCRIPT: float(in_script(text, language)),
        BY_IDENTIFIER: float(identify(text) == language),
        "found": detect(text),
    }


def is_language(text: str, language: str) -> bool:
    """Return whether ``text`` is in ``language`` according to its script and the identifier."""
    if not in_script(text, language):
        return False
    return language in _SCRIPTS or identify(text) == language


def detect(text: str) -> str:
    """Return the language of ``text``, or an empty string if it is in none of ``KNOWN``."""
    return next((language for language in KNOWN if is_language(text, language)), "")


def in_script(text: str, language: str) -> bool:
    """Return whether most words of ``text`` are in the script of ``language``.

    Text with Chinese characters is Japanese if at least a tenth of these characters are kana.
    """
    counts = script_words(text)
    script = _SCRIPTS.get(language, "LATIN")
    if script in ("HAN", "KANA"):
        found = counts["HAN"] + counts["KANA"]
        is_japanese = counts["KANA"] >= max(_LEAST_KANA * found, 1)
        if is_japanese != (language == "ja"):
            return False
    else:
        found = counts[script]
    return found > LEAST_SHARE * sum(counts.values())


def script_words(text: str) -> Counter[str]:
    """Return the number of words by script; each Chinese or Japanese character is a word."""
    counts: Counter[str] = Counter()
    previous = ""
    for character in text:
        script = _script(character)
        if script and (script != previous or script in ("HAN", "KANA")):
            counts[script] += 1
        # Marks, such as vowel signs of Devanagari, belong to the word.
        if script or not unicodedata.category(character).startswith("M"):
            previous = script
    return counts


def identify(text: str) -> str:
    """Return the language that the identifier finds in ``text``."""
    return _identifier().classify(" ".join(text.split()))[0]


@cache
def _script(character: str) -> str:
    """Return the script of a letter, or an empty string for other characters."""
    if not unicodedata.category(character).startswith("L"):
        return ""
    name = re.split(r"[ -]", unicodedata.name(character, "").removeprefix("FULLWIDTH "))[0]
    return _BY_CHARACTER.get(name, name)


@cache
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(KNOWN)
    return identifier
