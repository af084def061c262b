"""What stands above a sentence: headings of a section, and questions before their answers."""

import pytest

from tokforget.headings import find_heads, paragraph_numbers
from tokforget.text_units import split_sentences


def heads_of(text: str) -> dict[str, list[str]]:
    """For each sentence its heads, both without the white space around them."""
    sentences = [text[a:b] for a, b in split_sentences(text)]
    heads = find_heads(sentences)
    assert len(heads) == len(sentences)
    return {own.strip(): [sentences[one].strip() for one in above] for own, above in zip(sentences, heads)}


def test_a_section_ends_at_the_next_heading_of_its_level():
    found = heads_of("# Top\nOne.\n## Sub\nTwo.\n### Deep\nThree. Four.\n## Next\nFive.\n# Other\nSix.")
    assert found == {
        "# Top": [],
        "One.": ["# Top"],
        "## Sub": ["# Top"],
        "Two.": ["# Top", "## Sub"],
        "### Deep": ["# Top", "## Sub"],
        "Three.": ["# Top", "## Sub", "### Deep"],
        "Four.": ["# Top", "## Sub", "### Deep"],
        "## Next": ["# Top"],
        "Five.": ["# Top", "## Next"],
        "# Other": [],
        "Six.": ["# Other"],
    }


@pytest.mark.parametrize(
    "heading", ["Lost devices", "2 Lost devices", "[3] Lost devices", "**Lost devices**", "<h2>Lost devices</h2>", "Lost devices\n---"]
)  # fmt: skip
def test_forms_of_headings(heading):
    found = heads_of(f"It rained.\n\n{heading}\n\nReport them.\nAt once.")
    shown = heading.splitlines()[0]
    assert found["Report them."] == found["At once."] == [shown] and found["It rained."] == []


@pytest.mark.parametrize(
    "line",
    ["It ends like a sentence.", "Dear Anna,", "| a | b |", "- an item", "with more words than a heading has, and still more of them"],
)  # fmt: skip
def test_other_lines_are_no_headings(line):
    assert heads_of(f"It rained.\n\n{line}\n\nReport them.")["Report them."] == []
    assert heads_of("So.\nIt rained\nReport them.")["Report them."] == []  # no empty line before it


def test_comments_in_a_code_fence_are_no_headings():
    found = heads_of("# Run\n```\n# a comment\nrun this\n```\nDone.\n~~~\n# more\n~~~\nEnd.")
    assert found["run this"] == found["Done."] == found["End."] == ["# Run"]


def test_a_question_heads_the_rest_of_its_paragraph_or_the_next_one():
    found = heads_of(
        "# FAQ\nWho paid? The state. And the city.\n\nIt rained.\n\nWhy so late?\n\nNobody knew. Nobody asked.\n\nOver."
    )
    assert found["The state."] == found["And the city."] == ["# FAQ", "Who paid?"]
    assert found["It rained."] == found["Over."] == ["# FAQ"]
    assert found["Nobody knew."] == found["Nobody asked."] == ["# FAQ", "Why so late?"]


def test_an_empty_line_ends_a_paragraph():
    assert paragraph_numbers(["One. ", "Two.\n", "Three.\n\n", "Four.", "\n \n\nFive."]) == [0, 0, 0, 1, 2]
    assert paragraph_numbers([]) == []


@pytest.mark.parametrize("text", ["", " ", "#", "?", "```", "# a", "\n\n\n", "---", "a\n===", "?\n?\n\n?\n\n\n?"])
def test_any_text_has_heads_that_stand_before(text):
    heads = find_heads([text[a:b] for a, b in split_sentences(text)])
    assert all(one < place for place, above in enumerate(heads) for one in above)
