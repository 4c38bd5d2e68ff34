"""Copies of benchmark questions in real documents are found; other documents are not flagged."""

import gzip
import json
import random
import textwrap
import unicodedata

import pytest

from llama_cpt.corpus_report.characters import normalize
from llama_cpt.corpus_report.evaluation_texts import benchmark_texts
from llama_cpt.corpus_report.grams import words_and_characters
from llama_cpt.corpus_report.overlap import OverlapIndex


def found(index, documents):
    """Return the indices of the documents that overlap."""
    batches = range(0, len(documents), 50)
    return {
        start + match.document
        for start in batches
        for match in index.find(*words_and_characters(normalize(documents[start : start + 50])))
    }


@pytest.mark.slow
def test_planted_questions_are_found_and_random_documents_are_not_flagged(shared_data):
    questions = benchmark_texts(str(shared_data / "eval"))
    index = OverlapIndex(questions)
    draw, documents = random.Random(0), []
    for language in ("en", "zh", "ja", "es"):
        file = shared_data / "corpus" / language / f"{language}.train-00000.jsonl.gz"
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            documents += [json.loads(line)["text"] for line in lines]
    chosen = draw.sample(documents, 2000)
    flagged = found(index, chosen)
    clean = [text for number, text in enumerate(chosen) if number not in flagged]
    # The question as evaluate asks it: with its choices, if it has choices.
    long = [one for one in questions if len("".join(one.texts[-1].split())) >= 100]
    forms = {
        "exact": lambda text: text,
        "wrapped": lambda text: "\n".join(textwrap.wrap(text, 29)),
        "decomposed": lambda text: unicodedata.normalize("NFD", text.upper()),
        "punctuation": lambda text: text.replace(", ", " ... ").replace("，", " "),
    }
    for name, form in forms.items():
        planted = []
        for question, text in zip(draw.sample(long, 500), clean, strict=False):
            at = draw.randrange(len(text))
            planted.append(f"{text[:at]}\n{form(question.texts[-1])}\n{text[at:]}")
        hits = len(found(index, planted))
        print(f"{name}: {hits} of {len(planted)} planted questions found")
        assert hits == len(planted)
    print(f"{len(flagged)} of 2,000 documents without a planted question flagged")
    assert len(flagged) <= 2
