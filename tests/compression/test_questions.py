"""What `compress` keeps of realistic prompts when it is told the question."""

import pytest


PASSAGES = """[1] Full-time employees accrue 25 days of paid leave per calendar year. Up to five unused days may be carried over to the next year, but they must be taken before 31 March.

[2] Parents are entitled to 16 weeks of paid parental leave. Notice must be given eight weeks before the leave begins.

[3] Flights under six hours are booked in economy class. Hotel costs above 180 EUR per night need the approval of a director. Receipts must be submitted within 30 days.

[4] Laptops are replaced every four years. Do not store customer data on private devices."""
MANUAL = """# Manual

## Installing

Run the script `setup.sh` as root. It takes five minutes and needs a network.

## Removing

Delete the folder `/opt/kestrel`. Nothing else has to be done on the machine.

## Support

Write to the address on the invoice. Answers take two days."""


@pytest.mark.parametrize("rate", [0.15, 0.25])
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("When must receipts be submitted?", "[3] Receipts must be submitted within 30 days."),
        ("Who must approve expensive hotels?", "[3] Hotel costs above 180 EUR per night need the approval of a director."),
        ("May customer data be stored on private devices?", "Do not store customer data on private devices."),
    ],
)  # fmt: skip
def test_of_several_passages_the_sentence_that_answers_stays_whole_with_its_number(packaged, question, answer, rate):
    assert answer in packaged.compress(PASSAGES, rate=rate, question=question).text


@pytest.mark.parametrize(
    ("question", "kept", "dropped"),
    [("How is it removed?", "`/opt/kestrel`", "setup.sh"), ("How do I install it?", "`setup.sh`", "kestrel")],
)
def test_a_section_stays_whose_heading_alone_has_the_words_of_the_question(packaged, question, kept, dropped):
    output = packaged.compress(MANUAL, rate=0.4, question=question).text
    assert kept in output and dropped not in output


def test_a_quality_is_promised_with_a_question_too(packaged):
    plain, asked = (
        packaged.compress(PASSAGES * 3, quality=0.7, question=one) for one in (None, "Who must approve hotels?")
    )
    assert plain.predicted_retention >= 0.7 and asked.predicted_retention >= 0.7
