"""Loaders of benchmark files on disk. A loader returns one dataset per split.

The task files in this folder name the loaders.
"""

from collections.abc import Iterable, Sequence
import csv
from functools import lru_cache
import gzip
import io
import json
from pathlib import Path
from typing import Any
import zlib

import datasets

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.text_files import json_lines

Rows = list[dict[str, Any]]
LARGEST_FILE = 1 << 28
"""Maximum size of a benchmark file in bytes, after decompression."""
_INDEX = dict(zip("ABCD", "0123", strict=True))
_SUBJECTS = json.loads(Path(__file__).with_name("subjects.json").read_text("utf-8"))


class MissingFileError(UserError):
    """The files of a benchmark do not exist."""


def cmmlu(folder: str, part: str) -> dict[str, datasets.Dataset]:
    """Load a subject of haonan-li/CMMLU from ``cmmlu/{dev,test}/SUBJECT.csv``."""
    columns = ("Question", "A", "B", "C", "D", "Answer")
    return _subject(folder, "cmmlu", {"dev": f"{part}.csv", "test": f"{part}.csv"}, columns, part)


def ceval(folder: str, part: str) -> dict[str, datasets.Dataset]:
    """Load a subject of hkust-nlp/ceval from ``ceval/{dev,val}/SUBJECT_{dev,val}.csv``."""
    files = {split: f"{part}_{split}.csv" for split in ("dev", "val")}
    columns = ("question", "A", "B", "C", "D", "answer")
    return _subject(folder, "ceval", files, columns, part)


def mmlu(folder: str, part: str) -> dict[str, datasets.Dataset]:
    """Load a subject of MMLU from ``mmlu/{dev,test}/SUBJECT_{dev,test}.csv``."""
    files = {split: f"{part}_{split}.csv" for split in ("dev", "test")}
    columns = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
    return _subject(folder, "mmlu", files, columns, part)


def gsm8k(folder: str, part: str) -> dict[str, datasets.Dataset]:
    """Load openai/grade-school-math from ``gsm8k/{train,test}.jsonl.gz``."""
    columns = ("question", "answer")
    return {
        split: _dataset(_json_lines(_file(folder, f"gsm8k/{split}.jsonl"), columns))
        for split in ("train", "test")
    }


def mgsm_zh(folder: str, part: str) -> dict[str, datasets.Dataset]:
    """Load MGSM of google-research/url-nlp from ``mgsm/mgsm_zh.tsv``, which has no header."""
    file = _file(folder, "mgsm/mgsm_zh.tsv")
    rows = _table(file, "\t")
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UserError(
                f"{file}:{number}: has {len(row)} columns; it must have 2, a question and a number."
            )
    return {"test": _dataset([{"question": q, "answer_number": n} for q, n in rows])}


def xcopa_zh(folder: str, part: str) -> dict[str, datasets.Dataset]:
    """Load cambridgeltl/xcopa from ``xcopa/test.zh.jsonl``."""
    columns = ("premise", "choice1", "choice2", "question", "label")
    rows = _json_lines(file := _file(folder, "xcopa/test.zh.jsonl"), columns)
    for number, row in enumerate(rows, 1):
        if row["label"] not in (0, 1) or not (row["choice1"] and row["choice2"]):
            raise UserError(f"{file}: question {number} needs two choices and a label of 0 or 1.")
    return {"test": _dataset(rows)}


def xcopa_choices(row: dict[str, Any]) -> list[str]:
    """Return the two choices with a lower-case first letter, as in lm-evaluation-harness."""
    return [text[0].lower() + text[1:] for text in (row["choice1"], row["choice2"])]


def blimp(folder: str, part: str) -> dict[str, datasets.Dataset]:
    """Load a paradigm of nyu-mll/blimp from ``blimp/blimp.jsonl``."""
    return {"test": _dataset(_blimp_pairs(folder)[part])}


def blimp_paradigms(folder: str) -> list[str]:
    """Return the names of the paradigms in ``blimp/blimp.jsonl``, such as ``adjunct_island``."""
    return sorted(_blimp_pairs(folder))


@lru_cache(maxsize=1)
def _blimp_pairs(folder: str) -> dict[str, Rows]:
    """Return the pairs of sentences by paradigm."""
    columns = ("sentence_good", "sentence_bad", "UID")
    pairs: dict[str, Rows] = {}
    for row in _json_lines(file := _file(folder, "blimp/blimp.jsonl"), columns):
        pairs.setdefault(str(row["UID"]), []).append({name: row[name] for name in columns})
    if not pairs:
        raise UserError(f"{file}: has no pairs of sentences; download it again.")
    return pairs


def humaneval(folder: str, part: str) -> dict[str, datasets.Dataset]:
    """Load openai/human-eval from ``human_eval/HumanEval.jsonl.gz``."""
    columns = ("prompt", "entry_point", "test")
    return {"test": _dataset(_json_lines(_file(folder, "human_eval/HumanEval.jsonl"), columns))}


def world(folder: str, file: str, **_: Any) -> dict[str, datasets.Dataset]:
    """Load questions on the demo's world from ``LANGUAGE.{facts,arithmetic,feelings}.jsonl``.

    If ``lm_eval`` loads the task, ``folder`` and additional arguments come from the option
    ``--metadata`` of ``lm_eval``.
    """
    rows = _json_lines(_file(folder, file), ("text", "choices", "answer"))
    # Chinese is written without spaces.
    space = "" if file.startswith("zh.") else " "
    return {
        "test": _dataset(
            {
                "sentences": [f"{row['text']}{space}{choice}" for choice in row["choices"]],
                "answer": row["answer"],
            }
            for row in rows
        )
    }


def eq_bench(folder: str, part: str) -> dict[str, datasets.Dataset]:
    """Load EQ-bench/EQ-Bench from ``eq_bench/eq_bench_v2_questions_171.json.gz``."""
    file = _file(folder, "eq_bench/eq_bench_v2_questions_171.json")
    columns = ("prompt", "reference_answer_fullscale")
    try:
        content = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error}); download it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not an object of questions by number; download it again.")
    rows = _required(file, list(content.values()), columns)
    references = [row["reference_answer_fullscale"] for row in rows]
    _required(file, references, [f"emotion{i}{of}" for i in range(1, 5) for of in ("", "_score")])
    return {
        "test": _dataset(
            {
                "prompt": without_revision(row["prompt"]),
                "reference": json.dumps(row["reference_answer_fullscale"]),
            }
            for row in rows
        )
    }


def without_revision(prompt: str) -> str:
    """Return an EQ-Bench question without the request to revise the scores, as in EQ-Bench 2.1."""
    critique = " Then critique your answer by thinking it through step by step. "
    prompt = prompt.replace(f"{critique}Finally, give your revised scores.", "")
    before, _, rest = prompt.replace("First pass scores:\n", "").partition("Critique: <your")
    end = rest.partition("[End of answer]")[2]
    return f"{before}\n[End of answer]{end}\nYour answer:\n" if end else prompt


def subjects(folder: str, name: str, split: str, ending: str) -> list[str]:
    """Return the sorted subjects of a benchmark; raise UserError if there are no subject files."""
    path = Path(folder) / name / split
    names = {file.name.removesuffix(".gz") for file in path.glob("*")}
    found = sorted(name.removesuffix(ending) for name in names if name.endswith(ending))
    if not found:
        raise MissingFileError(
            f"{path} has no files *{ending}; set --data to a folder with the layout of "
            "docs/guide/evaluation.md."
        )
    return found


def _subject(
    folder: str, name: str, files: dict[str, str], columns: Sequence[str], part: str
) -> dict[str, datasets.Dataset]:
    subject = _SUBJECTS.get(name, {}).get(part, part.replace("_", " "))
    found = {}
    for split, file in files.items():
        rows = _csv(path := _file(folder, f"{name}/{split}/{file}"), columns)
        for number, row in enumerate(rows, 1):
            if row[columns[-1]] not in (*"ABCD", *range(4)):
                answer = row[columns[-1]]
                raise UserError(
                    f"{path}: the answer to question {number} is {answer!r}; it must be A to D or "
                    "0 to 3."
                )
        found[split] = _dataset(row | {"subject": subject} for row in rows)
    return found


def _csv(file: Path, columns: Sequence[str]) -> Rows:
    """Return the ``columns`` of a CSV file; a file without a header has exactly these columns."""
    header, *cells = _table(file, ",") or [[]]
    if not set(columns) <= set(header) and len(header) == len(columns) and header[-1] in _INDEX:
        # The original files of MMLU have no header, and give answers as letters, not as indices.
        header, cells = list(columns), [header, *cells]
        if columns[-1] == "answer":
            cells = [[*row[:-1], _INDEX.get(row[-1], row[-1])] for row in cells]
    for number, row in enumerate(cells, 1):
        if len(row) != len(header):
            raise UserError(
                f"{file}: row {number} has {len(row)} columns, not {len(header)}; download it "
                "again."
            )
    rows = _required(file, [dict(zip(header, row, strict=True)) for row in cells], columns)
    kept = [{name: row[name] for name in columns} for row in rows]
    # The answer in MMLU is the index of the right choice. In other benchmarks it is a letter.
    return [
        row | {c: int(v) for c, v in row.items() if c == "answer" and v.isdigit()} for row in kept
    ]


def _table(file: Path, delimiter: str) -> list[list[str]]:
    """Return the cells of the rows of a table that are not blank."""
    try:
        # strict: an unclosed quotation mark would join all following rows.
        found = csv.reader(io.StringIO(_text(file), newline=""), delimiter=delimiter, strict=True)
        return [row for row in found if row]
    except csv.Error as error:
        raise UserError(f"{file} is not a CSV table ({error}); download it again.") from None


def _json_lines(file: Path, columns: Sequence[str]) -> Rows:
    values = json_lines(_text(file), str(file), "download it again")
    rows = _required(file, [row for _, row in values], columns)
    return [{name: row[name] for name in columns} for row in rows]


def _required(file: Path, rows: list[Any], columns: Sequence[str]) -> Rows:
    if not rows:
        raise UserError(f"{file} has no questions; download it again.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{file}: question {number} is {row!r}, not an object.")
        for name in columns:
            if row.get(name) is None:
                fields = ", ".join(map(str, row))
                raise UserError(f"{file}: question {number} has no {name!r} (it has: {fields}).")
    return rows


def _file(folder: str, name: str) -> Path:
    """Return the path of ``name`` or ``name.gz``; raise UserError if both are missing."""
    for file in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if file.is_file():
            return file
    raise MissingFileError(
        f"{Path(folder) / name} (or .gz) does not exist; set --data to a folder with the layout of "
        "docs/guide/evaluation.md."
    )


def _text(file: Path) -> str:
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(
                f"{file} has more than {LARGEST_FILE >> 20} MB of text; download it again."
            )
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged ({error}); download it again.") from None


def _dataset(rows: Iterable[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(list(rows))
