"""Copies of evaluation text are found in all forms, and random documents are not flagged."""

import itertools
import random
import textwrap
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from llama_cpt.corpus_report.characters import normalize, script_counts
from llama_cpt.corpus_report.grams import words_and_characters
from llama_cpt.corpus_report.overlap import EvaluationText, OverlapIndex
from llama_cpt.runtime.errors import UserError

ENGLISH = (
    "A merchant's café sold forty-two ripe melons on Monday, and half as many on the next day; how "
    "many melons were left if the merchant began with 100?"
)
CHINESE = (
    "在农业生产中被当作极其重要的劳动对象发挥作用，最主要的不可替代的基本生产资料是什么？"
    "请从下面的四个选项中选出正确的一个答案，并说明理由。"
)
JAPANESE = (
    "ある商人がメロンを月曜日に四十二個売り、その翌日には半分の個数を売りました。最初に百個あった"
    "とすると、残りは何個でしょうか。ガラスの箱も数えてください。"
)
HINDI = (
    "एक व्यापारी ने सोमवार को बयालीस पके खरबूजे बेचे और अगले दिन उसके आधे बेचे तो बताइए कि सौ में "
    "से कितने खरबूजे बचे रहे"
)
SHORT = "Which planet has the largest number of moons?"
SHORT_CHINESE = "下列哪一颗行星拥有最多的卫星并且距离太阳比木星更远一些呢？"
FORMS = {
    "exact": lambda text: text,
    "wrapped": lambda text: "\n".join(textwrap.wrap(text, 17)),
    "inside": lambda text: f"Some words before it.\n\n{text}\n\nAnd 一些 words after it.",
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "uppercase": str.upper,
    "full width": lambda text: "".join(
        chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text
    ),
    "punctuation": lambda text: text.translate(str.maketrans(",;'，、。", " —’;!,")) + "...",
    "soft hyphens": lambda text: text.replace("me", "m\u00ade"),
    "chinese characters apart": lambda text: " ".join(text) if text[0] > "\u3000" else text,
}


def index(*texts):
    return OverlapIndex(
        EvaluationText("quiz", f"question {number}", (text,)) for number, text in enumerate(texts)
    )


def found(made, documents):
    return made.find(*words_and_characters(normalize(documents)))


def reference_words(text):
    normal = unicodedata.normalize("NFKC", text)
    normal = "".join(c for c in normal if unicodedata.category(c) != "Cf").casefold()
    normal = unicodedata.normalize("NFKC", normal)
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in normal)
    return "".join(kept).split()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_normalization_by_table_equals_unicodedata(texts):
    joined = normalize(texts).astype("<u4").tobytes().decode("utf-32-le")
    assert [text.split() for text in joined.split("\0")[:-1]] == list(map(reference_words, texts))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", [ENGLISH, CHINESE, JAPANESE, HINDI, SHORT, SHORT_CHINESE])
def test_planted_copy_is_found(text, form):
    made = index("An unrelated question that is here to be the first of all questions.", text)
    documents = ["Nothing to see here.", FORMS[form](text), "没有什么可看的。"]
    (match,) = found(made, documents)
    assert (match.document, made.sources[match.text]) == (1, ("quiz", "question 1"))


def test_part_of_an_ngram_is_not_an_overlap():
    words = [f"word{number}" for number in "abcdefghijklmnop"]
    made = index(" ".join(words))
    assert found(made, [" ".join(words[2:14])]) == []
    assert found(made, [" ".join(words[2:15])])[0].grams == 1
    # An n-gram does not cross the border between two documents.
    assert found(made, [" ".join(words[:8]), " ".join(words[8:])]) == []
    made = index(CHINESE)
    plain = "".join(reference_words(CHINESE))
    assert found(made, [f"啊{plain[3:52]}啊"]) == []
    assert found(made, [f"啊{plain[3:53]}啊"])[0].grams == 1
    # Numbers alone are not text.
    numbers = " ".join(map(str, range(40)))
    assert found(index(numbers), [numbers]) == []


def test_each_source_of_a_document_is_counted():
    texts = [("quiz", ENGLISH), ("held-out", CHINESE), ("quiz", JAPANESE)]
    made = OverlapIndex(EvaluationText(name, name, (text,)) for name, text in texts)
    matches = found(made, [f"{JAPANESE}\n{CHINESE}", "nothing", ENGLISH])
    assert [(m.document, made.sources[m.text][0]) for m in matches] == [
        (0, "quiz"),
        (0, "held-out"),
        (2, "quiz"),
    ]


def test_short_questions_are_compared_as_a_whole():
    made = index(SHORT, "Which planet has the largest number of rings and why?", "Why not?")
    assert made.texts["quiz"] == 3 and made.too_short["quiz"] == 1
    assert found(made, ["Which planet has the largest number of them, then? Why not?"]) == []
    matches = found(made, [f"Say: {SHORT} Saturn.", "which planet HAS the largest number of rings"])
    assert [(m.document, m.text, m.grams) for m in matches] == [(0, 0, 1)]


def test_at_most_2_of_2000_random_documents_are_flagged():
    """The documents and questions use the same 3,000 words and the same 1,500 characters."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 7))) for _ in range(3000)]
    weights = list(itertools.accumulate(1 / (n + 1) for n in range(3000)))
    letters = [chr(point) for point in range(0x4E00, 0x4E00 + 1500)]

    def english(count):
        return " ".join(draw.choices(words, cum_weights=weights, k=count))

    def chinese(count):
        return "".join(draw.choices(letters, cum_weights=weights[:1500], k=count))

    made = index(*(english(30) for _ in range(2000)), *(chinese(60) for _ in range(2000)))
    documents = [english(100) if number % 2 else chinese(200) for number in range(2000)]
    flagged = len(found(made, documents))
    print(f"{flagged} of 2,000 random documents flagged")
    assert flagged <= 2


def test_too_much_evaluation_text_is_an_error(monkeypatch):
    monkeypatch.setattr("llama_cpt.corpus_report.overlap.MAX_GRAMS", 10)
    with pytest.raises(UserError, match=r"more than 10 n-grams; name smaller held-out corpora"):
        index(ENGLISH)


def test_scripts_are_those_of_letters():
    points = normalize(["Ab, 12 中文。", "かな ア é"])
    assert script_counts(points) == {"Latin": 3, "Han": 2, "Hiragana": 2, "Katakana": 1}
