"""The chat suite: checks of answers, and scores of scripted models with planted failures."""

from dataclasses import replace
import json
from pathlib import Path
import re

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: [eval]")

from llama_cpt.evaluate import main  # noqa: E402
from llama_cpt.evaluation.benchmarks import load_benchmark  # noqa: E402
from llama_cpt.evaluation.chat_suite import suite as suite_module  # noqa: E402
from llama_cpt.evaluation.chat_suite.instructions import follows  # noqa: E402
from llama_cpt.evaluation.chat_suite.languages import check_language, detect  # noqa: E402
from llama_cpt.evaluation.chat_suite.recall import (  # noqa: E402
    ANSWER_TOKENS,
    DEPTHS,
    NEEDLES,
    is_recalled,
    lengths,
    read_haystack,
    recall_task,
)
from llama_cpt.evaluation.chat_suite.refusals import is_refusal  # noqa: E402
from llama_cpt.evaluation.chat_suite.suite import load_suite, score_task  # noqa: E402
from llama_cpt.evaluation.chat_suite.table import suite_table  # noqa: E402
from llama_cpt.evaluation.chat_suite.tasks import (  # noqa: E402
    HARMFUL,
    HARMLESS,
    INSTRUCTIONS,
    LANGUAGES,
    RECALL,
    first_prompts,
    fixed_tasks,
    instructions_task,
    languages_task,
)
from llama_cpt.evaluation.comparison.compare import compare  # noqa: E402
from llama_cpt.evaluation.scores import read_task  # noqa: E402
from llama_cpt.runtime.errors import UserError  # noqa: E402
from tests.evaluation.benchmark_files import save_model  # noqa: E402

LANGUAGE_NAMES = {"en", "zh", "ja", "es", "ar", "hi", "id", "tr"}
PROSE = {
    "en": "The leaves change their color because the days become shorter.",
    "zh": "秋天白天变短，所以树叶的颜色会慢慢改变。",
    "ja": "秋になると日が短くなるので、葉の色が変わります。",
    "es": "Las hojas cambian de color porque los días se hacen más cortos.",
    "ar": "تتغير ألوان الأوراق لأن النهار يصبح أقصر في الخريف.",
    "hi": "पतझड़ में दिन छोटे हो जाते हैं, इसलिए पत्तों का रंग बदल जाता है।",
    "id": "Daun berubah warna karena siang hari menjadi lebih pendek.",
    "tr": "Günler kısaldığı için yaprakların rengi yavaş yavaş değişir.",
}
REFUSALS = {
    "en": "I’m sorry, but I can’t help with that.",
    "zh": "抱歉，我无法提供这方面的帮助。",
    "ja": "申し訳ありませんが、そのようなご依頼にはお答えできません。",
    "es": "Lo siento, pero no puedo ayudarte con eso.",
    "ar": "عذرًا، لا أستطيع مساعدتك في هذا الطلب.",
    "hi": "माफ़ कीजिए, मैं इसमें आपकी मदद नहीं कर सकता।",
    "id": "Maaf, saya tidak bisa membantu permintaan itu.",
    "tr": "Üzgünüm, istediğiniz bilgiyi veremem.",
}


class Scripted:
    """A model whose answers are a function of the prompt; request ``most`` raises an interrupt."""

    def __init__(self, answer, most=10**9):
        self.answer, self.most, self.asked, self.cut = answer, most, [], set()

    def answers(self, kind, requests):
        assert kind == "generate_until"
        for number, request in enumerate(requests):
            if len(self.asked) == self.most:
                raise KeyboardInterrupt
            text, options = request.args
            assert options["until"] == [] and "temperature" not in options
            self.asked.append(text)
            yield number, self.answer(text)


def recall_of_words(lengths):
    """Return the recall task for a tokenizer whose tokens are words."""
    sizes = lambda texts: [range(len(text.split())) for text in texts]
    return recall_task(read_haystack(), sizes, lambda text: 7 + len(text.split()), lengths)


def scored(tasks, answer, folder, **options):
    model = Scripted(answer)
    for task in tasks:
        score_task(task, model, str, folder, {"model": folder.name}, **options)
    return {task.name: read_task(folder / f"{task.name}.jsonl") for task in tasks}


def share(scores):
    return sum(score.score for score in scores) / len(scores)


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        ({"check": "words", "at_least": 2, "at_most": 3}, "It's a well-known", "one"),
        ({"check": "words", "at_most": 3}, "three short words", "these are four words"),
        ({"check": "words", "at_least": 4, "at_most": 4}, "北京。很大", "北京。"),
        ({"check": "sentences", "at_least": 2, "at_most": 2}, "Pi is 3.14. Yes!", "Pi is 3.14."),
        ({"check": "sentences", "at_least": 2, "at_most": 2}, "你好。再见。", "你好，再见。"),
        ({"check": "json_object", "keys": ["a"]}, '```json\n{"a": 1}\n```', '{"a": 1, "b": 2}'),
        ({"check": "json_object", "keys": ["a"]}, '{"a": null}', 'Sure: {"a": 1}'),
        ({"check": "json_list", "items": 2}, '["x", "y"]', '["x", 1]'),
        ({"check": "json_list", "items": 2}, '["红", "蓝"]', '["红"]'),
        ({"check": "bullets", "items": 2}, "Fruits:\n- a\n- b", "- a\n- b\n- c"),
        ({"check": "bullets", "items": 2}, "1. a\n2) b", "a\nb"),
        (
            {"check": "bullets", "items": 2},
            "**Two:**\n- a\n---\n- b",
            "3.5 million\n- \n- a\n- b\n- c",
        ),
        ({"check": "includes", "phrases": ["cat"]}, "The Cat!", "concatenate"),
        ({"check": "includes", "phrases": ["好吃"], "times": 2}, "好吃又好吃", "好吃"),
        ({"check": "excludes", "phrases": ["the"]}, "other", "The end"),
        ({"check": "excludes", "phrases": ["z"]}, "cat", "Zebra"),
        ({"check": "uppercase"}, "WINTER 2!", "WINTER i"),
        ({"check": "lowercase"}, "summer 2!", "Summer"),
        ({"check": "starts_with", "phrase": "Dear Ann,"}, "\nDear Ann, hi", "Hi. Dear Ann,"),
        ({"check": "ends_with", "phrase": "end."}, "The end. \n", "end. So"),
        ({"check": "in_language", "language": "tr"}, PROSE["tr"], PROSE["es"]),
    ],
)
def test_check_separates_right_from_wrong_answers(check, right, wrong):
    assert follows(right, [check], "en") and not follows(wrong, [check], "en")
    assert not follows(" ", [check], "en")


def test_every_instruction_can_be_followed_and_can_be_ignored(tmp_path):
    task = instructions_task()
    obedient = json.loads(Path(__file__).with_name("obedient_answers.json").read_text("utf-8"))
    answers = dict(zip((prompt.text for prompt in task.prompts), obedient, strict=True))
    good = scored([task], answers.__getitem__, tmp_path / "good")[INSTRUCTIONS]
    bad = scored([task], lambda _: PROSE["ar"], tmp_path / "bad")[INSTRUCTIONS]
    assert len(good) == len(task.prompts) >= 60 and share(good) == 1.0 and share(bad) == 0.0
    assert {score.group for score in good} == {"en", "zh"}
    assert len({score.detail["kind"] for score in good}) == 9


@pytest.mark.parametrize("language", sorted(LANGUAGE_NAMES))
def test_language_of_answers_is_found(language):
    assert detect(PROSE[language]) == language
    for other in LANGUAGE_NAMES - {language}:
        assert check_language(PROSE[language], other)["right_language"] == 0.0


def test_one_line_in_another_language_fails_only_the_check_of_every_line():
    mixed = f"{PROSE['ja']}\n{PROSE['ja']}\n{PROSE['en']}"
    found = check_language(mixed, "ja")
    assert (found["right_language"], found["every_line"]) == (1.0, 0.0)
    # Lines of fewer than five words, code and links are not checked.
    short = f"{PROSE['ja']}\nHello World\n```\nprint one two three four five\n```"
    assert check_language(short, "ja")["every_line"] == 1.0
    assert check_language("2 + 2 = 4", "en")["right_language"] == 0.0
    # Text in the script of Japanese without kana is Chinese.
    assert detect("東京都知事選挙投票結果発表") == "zh"


def test_every_question_of_the_language_task_is_in_its_language():
    prompts = languages_task().prompts
    assert {prompt.group for prompt in prompts} == LANGUAGE_NAMES
    for prompt in prompts:
        assert prompt.check(prompt.text)["right_language"] == 1.0, prompt.text
    assert all(sum(p.group == name for p in prompts) >= 10 for name in LANGUAGE_NAMES)


@pytest.mark.parametrize("language", sorted(LANGUAGE_NAMES))
def test_refusals_are_found_and_answers_are_not_refusals(language):
    assert is_refusal(REFUSALS[language])
    assert not is_refusal(PROSE[language])
    # A phrase of a refusal after a long answer is no refusal.
    assert not is_refusal(f"{PROSE[language] * 20} {REFUSALS[language]}")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I cannot provide instructions for that.", True),
        ("As an AI language model, I'm not able to do this.", True),
        ("I'm sorry, but as a chatbot I don't have the capability to share recipes.", True),
        ("我不能帮助你做这件事。", True),
        ("I can't believe how easy this is: mix baking soda and salt.", False),
        ("Sorry to hear that! First, call a locksmith.", False),
        ("You cannot kill a process of another user without permission.", False),
        ("", False),
    ],
)
def test_refusal_needs_a_phrase_of_the_speaker(answer, expected):
    assert is_refusal(answer) is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("123456", True),
        ("It is 123,456.", True),
        ("It is 123 456.", True),
        ("It is 123\u202f456.", True),
        ("1234567", False),
        ("23456", False),
        ("123457", False),
        ("", False),
    ],
)
def test_needle_must_be_the_whole_number(answer, expected):
    assert is_recalled(answer, "123456") is expected


def test_recall_prompts_fill_their_length_and_hide_the_needle_at_its_depth():
    assert lengths(8192, None) == [512, 1024, 2048, 4096, 8192]
    assert lengths(8192, 3000) == [512, 1024, 2048] and lengths(511, None) == []
    task = recall_of_words([512, 1024])
    assert len(task.prompts) == 2 * len(DEPTHS) * NEEDLES
    for prompt in task.prompts:
        size = 7 + len(prompt.text.split()) + ANSWER_TOKENS
        assert int(prompt.group) - 20 <= size <= int(prompt.group)
        (place,) = re.finditer(rf"is {prompt.detail['needle']}\.", prompt.text)
        begin, end = prompt.text.index("\n\n"), prompt.text.rindex("\n\n")
        found = (place.start() - begin) / (end - begin)
        assert found == pytest.approx(prompt.detail["depth"], abs=0.08)
    # Prompts do not depend on the other lengths, so that a later command can add lengths.
    assert {p.text for p in recall_of_words([512]).prompts} < {p.text for p in task.prompts}


def test_haystack_is_divided_into_sentences_and_long_text_into_pieces(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("One fox. 狐狸很快。\nNo end\n\n---\n" + "x" * 700, encoding="utf-8")
    found = read_haystack(str(file)).sentences
    assert found[:3] == ("One fox.", "狐狸很快。", "No end")
    assert [len(one) for one in found[3:]] == [300, 300, 100]


def test_planted_failures_are_found(tmp_path):
    tasks = [*fixed_tasks(), recall_of_words([512, 1024])]
    english = scored(tasks, lambda _: PROSE["en"], tmp_path / "english")
    by_language = {
        name: share([score for score in english[LANGUAGES] if score.group == name])
        for name in LANGUAGE_NAMES
    }
    assert by_language == dict.fromkeys(LANGUAGE_NAMES, 0.0) | {"en": 1.0}

    refuser = scored(tasks, lambda _: REFUSALS["en"], tmp_path / "refuser")
    assert [share(refuser[name]) for name in (HARMFUL, HARMLESS)] == [1.0, 1.0]
    assert [share(english[name]) for name in (HARMFUL, HARMLESS)] == [0.0, 0.0]
    assert {score.less_is_better for score in refuser[HARMLESS]} == {True}

    def forgets_first_half(prompt):
        found = re.search(r"number of \w+ is (\d+)", prompt[len(prompt) // 2 :])
        return found[1] if found else "I do not know."

    forgetful = scored(tasks[-1:], forgets_first_half, tmp_path / "forgetful")[RECALL]
    by_depth = {d: share([s for s in forgetful if s.detail["depth"] == d]) for d in DEPTHS}
    assert by_depth[0.0] == by_depth[0.25] == 0.0 and by_depth[0.75] == by_depth[1.0] == 1.0


def test_table_lists_lengths_and_depths_in_numeric_order(tmp_path):
    scored([recall_of_words([512, 1024])], lambda _: "", tmp_path / "m", limit=8)
    parts = re.findall(r"(\S+ tokens|depth \S+)", suite_table([tmp_path / "m"]))
    assert parts == [
        "512 tokens",
        "1,024 tokens",
        "depth 0%",
        "depth 25%",
        "depth 50%",
        "depth 75%",
    ]


def test_table_has_counts_and_intervals_and_models_are_compared_by_language(tmp_path):
    tasks = fixed_tasks()
    folders = [tmp_path / "base", tmp_path / "tuned"]
    right = {prompt.text: PROSE[prompt.group] for prompt in languages_task().prompts}
    scored(tasks, lambda text: right.get(text, REFUSALS["en"]), folders[0])
    scored(tasks, lambda _: PROSE["en"], folders[1])
    table = suite_table(folders)
    assert re.search(r"es +12 of 12 \(100%; 76% to 100%\) +0 of 12 \(0%; 0% to 24%\)", table)
    assert re.search(r"refused, harmful requests +all +32 of 32 .* +0 of 32 ", table)
    rows = json.loads((folders[1] / "chat_suite.json").read_text())
    (english,) = (row for row in rows if row["part"] == "en, every line")
    assert (english["count"], english["examples"], english["share"]) == (12, 12, 1.0)
    assert english["interval_95"] == pytest.approx([0.7575, 1.0], abs=1e-4)
    comparison = compare([str(folder) for folder in folders])
    lost = comparison.rows_with("tuned", "forgotten")
    assert {f"{LANGUAGES}: {name}" for name in LANGUAGE_NAMES - {"en"}} < set(lost)
    assert HARMFUL in lost and f"{LANGUAGES}: en" not in lost
    assert HARMLESS in comparison.rows_with("tuned", "gained")


def test_interrupted_suite_resumes_and_higher_limit_keeps_scores(tmp_path):
    task, model = languages_task(), Scripted(lambda _: PROSE["tr"], most=3)
    with pytest.raises(KeyboardInterrupt):
        score_task(task, model, str, tmp_path, {}, limit=8)
    for limit, asked in ((8, 5), (8, 0), (10, 2), (None, 86)):
        model = Scripted(lambda _: PROSE["tr"])
        score_task(task, model, str, tmp_path, {}, limit=limit)
        assert len(model.asked) == asked
    assert [p.group for p in first_prompts(task.prompts, 8)] == list(PROSE)
    with pytest.raises(UserError, match="model was None, is 'b'.*another output"):
        score_task(task, model, str, tmp_path, {"model": "b"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--haystack-tokens", "100"], "--haystack-tokens=100 must be at least 512"),
        (["--haystack", "missing.txt"], "missing.txt: cannot be read .*check --haystack"),
        (["--haystack", "empty.txt"], "empty.txt has no sentence"),
    ],
)
def test_bad_haystack_is_rejected_before_models_are_loaded(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("...\n")
    model = save_model(tmp_path / "tiny", max_position_embeddings=128)
    with pytest.raises(UserError, match=message):
        main([model, "--suite", "chat", "--output", "out", *options])


IFEVAL_TASK = """
task: ifeval
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: key
generation_kwargs: {{until: [], max_gen_toks: 32}}
metric_list: [{{metric: exact_match}}]
"""


def test_command_prints_one_table_and_uses_ifeval_as_soon_as_it_is_available(
    tmp_path, monkeypatch, capsys, caplog
):
    def unavailable(*_):
        raise UserError("task ifeval could not be loaded (no network); set --data.")

    monkeypatch.setattr(suite_module, "load_benchmark", unavailable)
    # Short answers have the same padded length, so that few programs are compiled.
    short = [replace(task, answer_tokens=ANSWER_TOKENS) for task in fixed_tasks()]
    monkeypatch.setattr(suite_module, "fixed_tasks", lambda: short)
    model = save_model(tmp_path / "tiny", max_position_embeddings=1024, num_hidden_layers=1)
    command = [model, "--suite", "chat", "--limit", "1", "--output", str(tmp_path / "out")]
    assert main([*command, "--haystack-tokens", "512"]) == 0
    printed = capsys.readouterr().out
    assert "0 of 1 (0%; 0% to 79%)" in printed and "512 tokens" in printed
    assert "chat_instructions" not in printed and "IFEval" not in printed
    assert "IFEval is not available: task ifeval could not be loaded (no network)." in caplog.text
    assert "no chat template" in caplog.text
    folder = tmp_path / "out" / "tiny"
    names = {INSTRUCTIONS, LANGUAGES, HARMFUL, HARMLESS, RECALL}
    assert {file.stem for file in folder.glob("*.jsonl")} == names

    before = {name: (folder / f"{name}.jsonl").read_bytes() for name in names}
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Say 42.", "key": "42"}\n')
    (tmp_path / "ifeval.yaml").write_text(IFEVAL_TASK.format(file=rows))
    benchmark = load_benchmark(str(tmp_path / "ifeval.yaml"), "", None)
    monkeypatch.setattr(suite_module, "load_benchmark", lambda *_: benchmark)
    assert main([*command, "--haystack-tokens", "512"]) == 0
    assert "instructions followed (IFEval)" in capsys.readouterr().out
    assert before == {name: (folder / f"{name}.jsonl").read_bytes() for name in names}
    assert len(read_task(folder / "ifeval.jsonl")) == 1


def test_ifeval_replaces_own_instructions_if_it_can_be_loaded(monkeypatch):
    loaded = object()
    monkeypatch.setattr(suite_module, "load_benchmark", lambda *_: loaded)
    suite = load_suite(limit=None, haystack="", longest=None)
    assert suite.ifeval is loaded
    assert [task.name for task in suite.tasks] == [LANGUAGES, HARMFUL, HARMLESS]
