"""The report contains the sizes, duplicates, overlaps and languages of planted corpora."""

import csv
from dataclasses import replace
import json
from pathlib import Path
import re

from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import ChatConfig
from llama_cpt.corpus_report.page import summary_rows, write_report
from llama_cpt.corpus_report.report import make_report
from llama_cpt.corpus_report.sample import Sample, near_duplicates
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.prepare import main
from tests.corpus_report.planted import EN, ZH_PLANTED, planted, texts, write_lines

__all__ = ["planted"]


def cells(page):
    """Return the text of all rows of all tables of a page."""
    rows = re.findall("<tr>(.*?)</tr>", page)
    return [tuple(re.findall("<t[hd]>(.*?)</t[hd]>", row)) for row in rows]


def test_page_has_the_numbers(planted, capsys):
    folder = Path(planted).parent
    main([planted, "--report", "--eval-data", str(folder / "eval")])
    assert f"report: {folder}/prepared/report.html" in capsys.readouterr().out
    page = (folder / "prepared/report.html").read_text(encoding="utf-8")
    rows = cells(page)
    size = sum(len(text.encode()) for text in ZH_PLANTED)
    # A byte is a token, and each document has BOS and EOS. The sample has no repeated document.
    # A run has 10 rows of zh.
    characters, sampled = sum(map(len, ZH_PLANTED)), "".join(set(ZH_PLANTED))
    tokens = round(len(sampled.encode()) / len(sampled) * characters) + 2 * len(ZH_PLANTED)
    assert (
        "zh", "additional", "42", f"{size:,}", f"about {tokens:,}",
        f"about {characters / tokens:.2f}", f"about {10 / (tokens // 16):.2f}", "1", "1",
    ) in rows  # fmt: skip
    assert ("inside zh", "1") in rows and ("between zh and en", "1") in rows
    assert (f"{folder}/en.jsonl:11", f"{folder}/en.jsonl:3") in rows
    assert (f"{folder}/en.jsonl:12", f"{folder}/zh.jsonl:9") in rows
    assert ("held-out zh", "2", "1", "0", "1") in rows and ("mgsm_zh", "2", "1", "1", "0") in rows
    with open(folder / "prepared/overlap.csv", encoding="utf-8", newline="") as file:
        _, *hits = csv.reader(file)
    assert [hit[:4] for hit in hits] == [
        ["zh", f"{folder}/zh.jsonl:6", "mgsm_zh", "mgsm_zh, question 2"],
        ["en", f"{folder}/en.jsonl:10", "held-out zh", f"{folder}/held.jsonl:2"],
    ]
    assert (f"{folder}/en.jsonl:10", "held-out zh", f"{folder}/held.jsonl:2", hits[1][4]) in rows
    assert page.count('src="data:image/png;base64,') == 2 and "http" not in page
    assert not (folder / "prepared/zh").exists()


def test_counted_tokens_and_passes_come_from_prepared_rows(planted, capsys):
    main([planted])
    printed = capsys.readouterr().out
    tokens, rows = re.findall(r"zh: .*? ([\d,]+) tokens,.* ([\d,]+) rows", printed)[0]
    main([planted, "--report"])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("zh"))
    assert re.split("  +", line)[4] == tokens
    assert re.split("  +", line)[6] == f"{10 / int(rows):.2f}"


def test_rows_without_left_out_documents_are_described(planted):
    main([planted, "--drop-duplicates"])
    main([planted, "--report"])
    page = (Path(planted).parent / "prepared/report.html").read_text(encoding="utf-8")
    assert (
        "zh: tokens, characters per token and passes are those of the 41 documents in the prepared "
        "rows."
    ) in page
    assert not any("about" in cell for row in cells(page) for cell in row)


def test_conversations_are_counted_if_their_rows_are_prepared(planted, tmp_path):
    chats = [{"prompt": f"问题 {number}", "completion": "yes, yes"} for number in range(50)]
    (tmp_path / "zh.jsonl").write_text("\n".join(map(json.dumps, chats)))
    config = load_config(planted)
    assert config.model
    data = replace(
        config.data,
        sequence_length=127,
        original=(replace(config.data.original[0], kind="documents"),),
        chat=ChatConfig(),
    )
    config = replace(
        config, data=data, model=replace(config.model, context_length=128), num_steps=40
    )
    tokenizer = load_tokenizer(data.tokenizer)
    size = sum(len((one["prompt"] + one["completion"]).encode()) for one in chats)
    characters = sum(len(one["prompt"] + one["completion"]) for one in chats)
    report = make_report(config, "", tokenizer)
    # A byte is a token; the sample has the line feeds between the turns as well.
    tokens = round((size + 50) / (characters + 50) * characters)
    row = summary_rows(report)[1]
    assert row[:5] == ("zh", "additional", "50", f"{size:,}", f"about {tokens:,}")
    page = Path(write_report(report)).read_text(encoding="utf-8")
    assert "zh: the estimates are those of the texts of the turns." in page
    manifest = prepare(data, 1).rows["zh"]
    assert manifest.source_bytes == size and manifest.tokens > tokens
    report = make_report(config, "", tokenizer)
    assert summary_rows(report)[1][:7] == (
        "zh", "additional", "50", f"{size:,}", f"{manifest.tokens:,}",
        f"{characters / manifest.tokens:.2f}", f"{40 / manifest.rows:.2f}",
    )  # fmt: skip
    page = Path(write_report(report)).read_text(encoding="utf-8")
    assert "about" not in "".join(summary_rows(report)[1]) and "zh: the estimates" not in page
    # Rows of other files are not counted.
    (tmp_path / "zh.jsonl").write_text("\n".join(map(json.dumps, chats[1:])))
    assert summary_rows(make_report(config, "", tokenizer))[1][4].startswith("about ")


def test_warning_if_the_additional_corpus_is_partly_the_original_language(planted, caplog):
    folder = Path(planted).parent
    english = "The house is near the river, and the people of the town are happy number "
    chinese = "这座城市位于河边，人们在这里过着幸福的生活，编号为"
    write_lines(folder / "en.jsonl", [f"{english}{number}." for number in range(50)])
    write_lines(
        folder / "zh.jsonl",
        [f"{english if number % 5 == 0 else chinese}{number + 100}。" for number in range(50)],
    )
    main([planted, "--report"])
    assert (
        "zh: 20% of the sampled documents are in the language en of the original corpus en, so the "
        "share of the additional language in training is lower than data.almr."
    ) in caplog.messages


def test_near_duplicates_are_sampled_together_and_found(monkeypatch):
    monkeypatch.setattr("llama_cpt.corpus_report.sample.SAMPLE_DOCUMENTS", 30)
    base = texts(5, 30)
    edited = [f"{text} more" for text in base[:10]]
    first, second = Sample(), Sample()
    for number, text in enumerate(base + edited[:6]):
        first.add(number % 30, number, f"{number}".encode(), text)
    for number, text in enumerate(edited[6:] + EN[:5]):
        second.add(number + 6, number, f"{number}".encode(), text)
    # The 30 smallest of 36 keys: the six edited documents replace six others.
    assert len(first.entries) == 30 and first.bound == 23
    rates = near_duplicates([first, second])
    assert rates[0, 0] == (12, 30)
    assert rates[1, 0] == (4, 9) and rates[0, 1] == (4, 30)
    assert rates[1, 1] == (0, 9)
