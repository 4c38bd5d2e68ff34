"""Tests that task files run no code of their own, and that their templates are bounded."""

from pathlib import Path

import pytest

from llama_cpt.runtime import jinja_worker
from llama_cpt.runtime.errors import UserError

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: [eval]")

from lm_eval.utils import apply_template  # noqa: E402

from llama_cpt import evaluate  # noqa: E402
from llama_cpt.evaluation.benchmarks import check_name, load_benchmark  # noqa: E402
from llama_cpt.evaluation.questions import make_questions  # noqa: E402

TASK = """task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: {text}
doc_to_target: "a"
"""


def write_task(folder: Path, text: str, more: str = "", name: str = "mine.yaml") -> Path:
    (folder / "rows.jsonl").write_text('{"q": "one", "n": 3}\n{"q": "two", "n": 4}\n')
    task = folder / name
    task.write_text(TASK.format(file=folder / "rows.jsonl", text=text) + more)
    return task


def write_code(folder: Path) -> Path:
    """Write a Python file that leaves a mark if it runs, and return the path of the mark."""
    mark = folder / "ran"
    code = f"with open({str(mark)!r}, 'w'):\n    pass\ndef f(doc):\n    return doc['q'].upper()\n"
    (folder / "code.py").write_text(code)
    return mark


@pytest.mark.parametrize("name", ["mine.yaml", "mine.yml", "mine"])
@pytest.mark.parametrize(
    ("more", "found"),
    [
        ("doc_to_choice: !function code.f", "!function"),
        ("process_docs: !function code.f", "!function"),
        ("process_docs: code.f", "process_docs:"),
        ("class: code.Task", "class:"),
        ("deep: [{a: {b: [!function code.f]}}]", "!function"),
        ("? !function code.f\n: 1", "!function"),
        ("x: !!python/name:os.system", "python/name:os.system"),
        ("metric_list: [{metric: ./code}]", "metric: ./code"),
        ("x: &m ./code\nmetric_list: [{metric: *m}]", "metric: ./code"),
        ("x: &m {metric: ./code}\nmetric_list: [{<<: *m}]", "metric: ./code"),
        ("metric_list: [{metric: acc, hf_evaluate: true}]", "hf_evaluate: true"),
        ("use_prompt: other.yaml:x", "use_prompt: other.yaml:x"),
        ("include: sub/other.yaml", "!function"),
        ("include: [base.yaml, sub/other.yaml]", "!function"),
    ],
)
def test_task_file_with_code_is_refused(tmp_path, monkeypatch, name, more, found):
    monkeypatch.chdir(tmp_path)
    mark = write_code(tmp_path)
    (tmp_path / "base.yaml").write_text("num_fewshot: 0\ninclude: base.yaml\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/other.yaml").write_text("x: 1\ndoc_to_text: !function ..code.f\n")
    write_task(tmp_path, '"{{ q }}"', more, name)
    for refuse in (check_name, lambda name: load_benchmark(name, "", None)):
        with pytest.raises(UserError, match="runs Python code of the task.*--allow-task-code"):
            refuse(name)
    with pytest.raises(UserError) as caught:
        check_name(name)
    file, line, message = str(caught.value).split(":", 2)
    assert found in message and Path(file).is_file() and int(line) > 1
    check_name(name, allow_code=True)
    assert not mark.exists()


def test_task_file_without_code_is_accepted(tmp_path):
    """Metrics of a group are names, and a merge key does not change the place of a metric."""
    more = "class: null\naggregate_metric_list: [&m {metric: mine}, {<<: *m}]\n"
    check_name(str(write_task(tmp_path, '"{{ q }}"', more)))


def test_allowed_code_runs(tmp_path):
    mark = write_code(tmp_path)
    task = str(write_task(tmp_path, "!function code.f"))
    benchmark = load_benchmark(task, "", None, allow_code=True)
    questions = make_questions(benchmark, chat=None, limit=None)
    assert [question.instances[0].args[0] for question in questions] == ["ONE", "TWO"]
    assert mark.exists()


def test_command_refuses_code_before_it_reads_models(tmp_path):
    task = str(write_task(tmp_path, "!function code.f"))
    arguments = ["none", "--tasks", task, "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"mine.yaml:6: !function runs Python code"):
        evaluate._tasks(evaluate._parse(arguments))
    assert evaluate._tasks(evaluate._parse([*arguments, "--allow-task-code"])) == [task]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ cycler.__init__.__globals__.os.system('touch ran') }}", "unsafe operation"),
        ("{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}", "longer"),
        ("{{ 'a' * 10**10 }}", "needs more than 1 GB"),
        ("{{ missing }}", "'missing' is undefined"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_templates_of_tasks_are_bounded(tmp_path, monkeypatch, template, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jinja_worker, "SECONDS", 0.5)
    task = write_task(tmp_path, f'"{template}"')
    with pytest.raises(UserError, match=rf"^task .*mine.yaml: template .*{message}"):
        make_questions(load_benchmark(str(task), "", None), chat=None, limit=None)
    assert not (tmp_path / "ran").exists()


def test_templates_have_the_filters_and_settings_of_the_harness():
    template = (
        "{{ q | regex_replace('o', '0') }} {{ n + 1 }} {{ self_ }} {{ l.append(2) }}{{ l }}\n"
    )
    document = {"q": "foo", "n": 3, "self_": None, "l": [1], "self": "column"}
    assert apply_template(template, document) == "f00 4 None None[1, 2]\n"


def test_file_that_is_not_yaml_is_an_error(tmp_path):
    task = tmp_path / "mine.yaml"
    for content in ("a: [1", "[" * 2_000):
        task.write_text(content)
        with pytest.raises(UserError, match=r"mine.yaml: not a task file in YAML"):
            check_name(str(task))
    task.write_text("include: absent.yaml")
    with pytest.raises(UserError, match=r"absent.yaml: cannot be read .*; check --tasks"):
        check_name(str(task))
