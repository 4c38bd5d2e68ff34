"""Tests that names, prompts and answers cannot act in the report of a pipeline."""

from llama_cpt.evaluation.exact_match import Accuracy
from llama_cpt.pipelines import report
from llama_cpt.pipelines.report import StageReport

ATTACK = "a|b\n# c <script>d</script> [e](http://f.g) `h` \x1b[31m"
ESCAPED = r"a\|b # c &lt;script&gt;d&lt;/script&gt; \[e\](http&#58;//f.g) \`h\` \[31m"


def test_names_prompts_and_answers_are_escaped():
    curves = {"rewards/chosen": [(1, 0.5), (2, 1.0)]}
    accuracies = {ATTACK: Accuracy(2, 1, 0, 0.5)}
    stage = StageReport(ATTACK, 9, {ATTACK: 1.0}, curves, {ATTACK: ATTACK}, accuracies)
    assert report._samples([stage], ATTACK) == (
        f"## {ESCAPED}\n\n| model | answer |\n| --- | --- |\n| {ESCAPED} | {ESCAPED} |"
    )
    assert report._rewards(stage) == (
        f"## Preferences: {ESCAPED}\n\n|  | first | last |\n| --- | --- | --- |\n"
        "| `rewards/chosen` | 0.5000 | 1.0000 |"
    )
    assert f"| {ESCAPED} | 9 | 1.0000 |" in report._bits([stage], [ATTACK])
    assert f"| {ESCAPED} | {ESCAPED} | 1 of 2 (50%) |" in report._examination([stage], 2)
    assert not set(report.summary([stage])) & set("\x1b\r")
