"""What must not be turned round or run together: negations, limits, ends of sentences, lines and turns."""

import re
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import packaged_compressor
from tests.support import fuzz_compressor as fuzz
from tokforget import Compressor
from tokforget.compression import ranked_text
from tokforget.compression.meaning import find_bonds, find_line_breaks, find_negations, find_roles, find_sentence_ends
from tokforget.compression.pieces import cut
from tokforget.compression.search import Ranked, join, search_budget


ANY_OPINION = fuzz.make_compressor()
RATES = (0.3, 0.5, 0.7, 0.9)
CHAT = """system: You are a support agent. Never promise refunds.
user: My card was charged twice for order 81924, and I have not been able to reach anyone.
assistant: I am sorry to hear that. The second charge has not been settled yet.
user: Please don't tell me to wait ten days again! Unless it is gone by Friday, I will leave.
"""
LETTER = """Council rejects harbour plan

The council voted on Tuesday not to build the new bridge. Opponents were not convinced by the figures.
Figures before 2026 are not comparable!

- Ferry service continues until 30 September 2027.
- The old bridge will not be closed, except on Sundays.
"""


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return Compressor.from_pretrained("embedded")


def found(finder, text: str) -> list[str]:
    return [text[a:b] for a, b in sorted(finder(text))]


@pytest.mark.parametrize(
    "text, negations",
    [
        ("It is not, cannot and won’t be; I don't. No, never!", ["not", "cannot", "won’t", "don't", "No", "never"]),
        ("Take note of the knot in No. 5, nobody but Nora", ["nobody"]),
        ("A sin, a non-stop sans-serif font, and I cant", ["cant"]),
        ("Das Konto wird nicht ohne Ihre Zustimmung geschlossen, kein Problem im Mai.", ["nicht", "ohne", "kein"]),
        ("Le compte n'a pas été fermé. Il ne vient plus, et deux de plus.", ["n'a", "pas", "ne", "plus"]),
        ("La cuenta no será cerrada sin aviso para usted, nunca.", ["no", "sin", "nunca"]),
        ("A conta não está no banco, sem custo para você, nem hoje.", ["não", "sem", "nem"]),
        ("Il conto non è mai chiuso senza avviso.", ["non", "mai", "senza"]),
        ("Questa porta non era chiusa, anche se pioveva.", ["non"]),
        ("Die Einladung kommt im Mai per E-Mail, dazu noch ein Bild von van Gogh.", []),
        ("De rekening wordt niet gesloten en er is geen bedrag, nooit.", ["niet", "geen", "nooit"]),
        ("Счёт не будет закрыт без согласия, нет и никогда", ["не", "без", "нет", "никогда"]),
        ("لن تنتهي الأعمال قبل خريف 2027", ["لن"]),
        ("我不知道", ["不"]),
    ],
)
def test_negations_are_found_in_their_language_only(text, negations):
    assert found(find_negations, text) == negations


@pytest.mark.parametrize(
    "text, ends",
    [
        ("It is 3.5 m. Is it?! Yes (it is.) So", [".", "?!", ".)"]),
        ('Dr. Smith of the U.S. said e.g. this, No. 5. "No." We', [".", '."']),
        ("Tickets? No. what time is it?\nAnn: Yes. at 7 pm by No. 5 or so.", ["?", ".", "?", ".", "."]),
        ("1. First item.\n2. Second", ["."]),
        ("これは本です。はい！", ["。", "！"]),
    ],
)
def test_ends_of_sentences(text, ends):
    assert found(find_sentence_ends, text) == ends


@pytest.mark.parametrize("row", ["|  |  |", "| 1 |  |", "| | 2 |"])
def test_a_table_may_have_empty_cells(compressor, row):
    for head in ("| a | b |", "|  |  |"):
        text = f"{head}\n|---|---|\n{row}\n| one | two |\n"
        assert compressor.compress(text, rate=0.6, unit="word").shortfall >= 0


def test_breaks_of_wrapped_lines_are_no_structure():
    wrapped = "The council voted on Tuesday not to build the\nnew harbour bridge, which the mayor had hoped\nto open within two years.\n\nNext."
    assert found(find_line_breaks, wrapped) == ["\n\n"]
    assert found(find_line_breaks, "a list:\n  - one\n  - two\n") == ["\n  ", "\n  ", "\n"]


@pytest.mark.parametrize(
    "text, roles",
    [
        (CHAT, ["system:", "user:", "assistant:", "user:"]),
        ("**Anna Petersen:** Hello\n<|user|>\nhi\n  Q: why?\nsee http://a.b\nthe time: 12:30", ["**Anna Petersen:**", "<|user|>", "  Q:"]),
    ],
)  # fmt: skip
def test_names_of_speakers(text, roles):
    assert found(find_roles, text) == roles


CASES = {
    "Your card ending in 7731 will not be cancelled.": ("cancelled", "not"),
    "please do not cancel my card!": ("cancel", "not"),
    "And please don't tell me to wait ten days again": ("tell", "don't"),
    "Opponents were not convinced": ("convinced", "not"),
    "Figures before 2026 are *not* comparable": ("comparable", "not"),
    "لن تنتهي الأعمال قبل خريف 2027": ("تنتهي", "لن"),
    "Das Konto wurde nicht gekündigt.": ("gekündigt", "nicht"),
}


@pytest.mark.parametrize("text", CASES)
@pytest.mark.parametrize("protect", ["readable", ["numbers", "urls", "emails", "identifiers"]], ids=str)
def test_a_statement_is_not_turned_round(compressor, text, protect):
    word, negation = CASES[text]
    for rate in RATES:
        output = compressor.compress(text, rate=rate, unit="word", protect=protect, on_impossible="warn").text
        assert negation in output or word not in output, output
        assert "ten" not in output.split() or "ten days" in output
    assert negation in output and word in output


TURNED = """
Not all students passed the exam in June.|students|Not all
Not every passenger survived the crash.|passenger|Not every
All but two of the passengers survived the crash.|passengers|All but two
It is far from certain that the merger will succeed this year.|succeed|far from certain
She failed to submit the form on time for the grant.|submit|failed
The minister refused to sign the agreement on Friday.|sign|refused
The witness denied seeing the car before the crash.|seeing|denied
The school became independent from Durham University in 1963.|became|independent
The public's part in it still remains limited because no member is told.|remains|limited
Many Americans, at first hostile to empire, became supportive when Germany attacked.|became|supportive
There is little evidence that the vaccine is unsafe for children.|evidence|little
The motor seldom starts in cold weather here.|starts|seldom
The service is unlikely to return before Christmas.|return|unlikely
Instead of paying in cash, customers used the new card.|paying|Instead of
The team almost won the final in Lisbon last year.|won|almost
You may enter only with a valid ticket from the office.|ticket|only
The key works only if the alarm is armed at night.|armed|only if
Keep the door closed until the light turns green.|green|until
The refund is paid provided that the goods are returned.|returned|provided
Sales fell to 20 percent of the plan in the third quarter.|20 percent|to
The price rose from 1,200 euros to $3,400 in a year.|$3,400|to
He is not as tall as his brother Tom from Leeds.|tall|as brother
The results are no better than chance in our test.|better|no than chance
The company has yet to publish its figures for May.|publish|yet to
He said “never again” and left the hall for good.|never|again
Der Vertrag wurde weder gekündigt noch verlängert.|verlängert|noch
Die Anlage darf ohne Aufsicht keinesfalls starten.|starten|keinesfalls
Sofern die Ware fehlt, zahlen wir das Geld zurück.|fehlt|Sofern
Le contrat n'a jamais été signé par le client.|signé|n'a jamais
La banque ne remboursera pas les frais de dossier.|remboursera|ne pas
La oferta vale solo para clientes nuevos de la tienda.|clientes|solo
De brug draagt hooguit 12 ton aan last.|12 ton|hooguit
Pankki ei maksa rahoja takaisin ennen maanantaita.|maksa|ei
Bank nie zwróci pieniędzy przed poniedziałkiem.|zwróci|nie
Banca nu va returna banii înainte de luni.|returna|nu
Banki nem fizeti vissza a pénzt hétfő előtt.|fizeti|nem
Bank tidak akan mengembalikan uang sebelum Senin.|mengembalikan|tidak
Ngân hàng không hoàn lại tiền trước thứ hai.|hoàn|không
은행은 월요일 전에 돈을 돌려주지 않습니다.|돌려주지|않습니다
비밀번호를 절대 공유하지 마세요.|공유하지|마세요
The works will not end before autumn 2027 in the port.|2027|before autumn
لن تنتهي الأعمال في الميناء قبل خريف 2027|2027|قبل خريف
The rule applies only if the tenant has agreed in writing.|applies|only if tenant
Only if the lamp is red may you open the valve at the back.|if|Only
Nur wenn der Schaden bis Montag behoben ist, zahlt er die Miete.|wenn|Nur
Payment is due on Friday unless the goods were damaged.|due|unless
Der Rabatt gilt nur wenn die Ware bezahlt ist.|Rabatt|nur wenn
Assistant: Do you want it? User: No. what time is it?|No|.
The bank refused his request for a refund in May.|request|refused
I doubt that the firm will pay its debts in time.|pay|doubt
Smoking is banned in all public halls of the town.|Smoking|banned
He forgot to lock the door of the shed at night.|lock|forgot
Die Firma weigert sich, die Rechnung zu zahlen.|zahlen|weigert
Der Antrag wurde abgelehnt, weil er zu spät kam.|Antrag|abgelehnt
El banco se niega a devolver el dinero.|devolver|niega
Банк отказался вернуть деньги клиенту.|вернуть|отказался
All staff but the cook may leave early on Friday.|cook|but
The form must be signed by J. R. Smith in person.|R.|J. Smith
The form was signed by George W. Bush in person.|W.|Bush
The offer is no longer valid for new members.|valid|no longer
It was not only cheap but also very fast.|cheap|not only
They are not exactly legs but more like fins.|not|exactly legs
We are not quite ready for the launch in Oslo.|not|quite ready
The fine is not more than 100,000 dollars for each case.|100,000|not more than
The office is open from 9 to 5 on weekdays.|to 5|from 9
The office is open between 9 and 5 on weekdays.|and 5|between 9
Children aged 6 to 12 pay half the price.|to 12|6
You are free from 11:30 am to 8:30 pm on Friday.|8:30 pm|11:30 am
Das Büro ist von 9 bis 17 Uhr geöffnet.|17 Uhr|9 bis
La oficina abre de 9 a 17 horas entre semana.|17|de 9 a
Магазин работает с 9 до 18 часов.|18|с 9 до
He taught at the school from 1975 to 1977 in all.|1975|to 1977
"""


@pytest.mark.parametrize("case", TURNED.strip().splitlines())
def test_no_opinion_turns_a_statement_round(compressor, case):
    text, word, needed = case.split("|")
    before = "The council met on Tuesday in the old hall, and the mayor spoke of the harbour and the weather. "
    for chosen in (ANY_OPINION, compressor):
        for rate in (0.4, 0.6, 0.8):
            for result in chosen.compress([text, before + text], rate=rate, unit="word"):
                assert word not in result.text or all(one in result.text for one in needed.split()), result.text


@pytest.mark.parametrize(
    "text, word, needed",
    [
        ("(2) in the value of a house but not\n    greater than 5,000 dollars in any case.", "greater", "not"),
        (
            "(3) a fine of at least 250 dollars, but not more than\n    900 dollars for each case.",
            "900",
            "not more than",
        ),
        ("(4) The Board may not\napprove any loan above that sum.", "approve", "not"),
        ("(5) He left before\nnoon on Friday of last week.", "noon", "before"),
    ],
)
def test_a_line_break_within_a_clause_turns_nothing_round(compressor, text, word, needed):
    for chosen in (ANY_OPINION, compressor, packaged_compressor()):
        for rate in np.linspace(0.4, 0.9, 6):
            output = chosen.compress(text, rate=rate, unit="word").text
            assert word not in output or all(one in output for one in needed.split()), output


def test_what_a_line_ends_with_stays_on_it():
    text = "The office pays for\n    (1) the lamps of the hall; and\n    (2) what costs more than the sum above but not\nmore than 5,000 dollars a year.\n"
    for seed_rate in np.linspace(0.2, 0.9, 30):
        for chosen in (ANY_OPINION, packaged_compressor()):
            output = chosen.compress(text, rate=seed_rate, unit="word").text
            assert not re.search(r"(?:lamps|hall|and|;)[^\n]* not", output), output


@pytest.mark.parametrize("text", ["`" * 80, "```", "a\n```", "---\n---", "~~~\n", "- ```"])
def test_a_fence_may_be_all_that_there_is(text):
    result = ANY_OPINION.compress(text, rate=0.9, unit="word")
    assert result.shortfall >= 0 and set(result.text) <= set(text)


@pytest.mark.parametrize("rate", np.linspace(0.2, 0.9, 8))
def test_line_breaks_behind_an_opening_line_and_between_two_turns_stay(rate):
    talk = "Barista: Is this order correct? Please let me know if you want me to change anything before I send it.\nCustomer: Yes, the order is correct"
    head = "---\nname: reviewer of code\nkind: It reads what others wrote, line by line\n---\n\nRead the code."
    fence = "```python\nx = one(two)\nprint(x or y)\n```\nThat is all that there is to say of it."
    for chosen in (ANY_OPINION, packaged_compressor()):
        for text in (talk, "Barista: Hello.\n\n" + talk, head, fence):
            output = chosen.compress(text, rate=rate, unit="word").text
            assert not re.search(r"[^\n]Customer:|---[^\S\n]*\w|```python[^\S\n]*\w", output), output


def test_lines_of_a_list_are_clauses_of_their_own():
    text = "no sugar\nred apples\nnot\nGreen tea\nwithout\n\nmilk for\ntom: fish not\n2. bread"
    places = np.arange(len(text))
    pieces = cut(text, np.stack([places, places + 1], 1), "word")
    bonds = find_bonds(text, pieces)
    names = [text[a:b].strip() for a, b in pairwise(pieces.chars)]
    along = {
        (names[piece], names[at])
        for piece, first, last in zip(bonds.pieces, bonds.first, bonds.last)
        for at in range(first, last)
    }
    for negation, word in (
        ("no", "red"),
        ("not", "Green"),
        ("without", "milk"),
        ("without", "fish"),
        ("not", "bread"),
    ):
        assert (negation, word) not in along


def test_a_clause_goes_whole_and_takes_its_negation_along(compressor):
    text = "The lift will be closed on Monday. Please do not use the goods lift for passengers. The insurance does not cover it."
    packaged = packaged_compressor()
    for rate in np.linspace(0.2, 0.9, 15):
        for chosen in (ANY_OPINION, compressor, packaged):
            output = chosen.compress(text, rate=rate, unit="word").text
            sentences = [words.split() for words in re.split(r"[.]", output) if words.strip()]
            for words in sentences:
                assert words != ["not"], output
            for words in sentences:
                if "goods" in words or "passengers" in words:
                    assert "not" in words and "use" in words, output
    assert "not cover" not in packaged.compress(text, rate=0.3).text


def test_words_in_a_tag_limit_and_deny_nothing(compressor):
    text = '<td class="before"><b class="not until">It knows the rains of the north.</b> The ferry runs <i class="no">daily</i>.</td>'
    for rate in np.linspace(0.2, 0.95, 16):
        for chosen in (ANY_OPINION, compressor):
            for nested in (False, True):
                output = chosen.compress(text, rate=rate, unit="word", nested=nested, on_impossible="warn").text
                for name in ("td", "b", "i"):
                    assert output.count(f"<{name} ") == output.count(f"</{name}>"), output


def test_numbers_do_not_join_at_the_comma_of_a_word_that_is_gone():
    text = "0.187,should,0.047\n5,about,7.5\n12:unknown:30 and 3.of.4, 1,435 of 9"
    offsets = np.array([match.span() for match in re.finditer(r"\s?\d+(?:[.,:]\d+)*|\s?\w+|\s?[^\w\s]", text)])
    pieces, generator = cut(text, offsets, "word"), np.random.default_rng(0)
    numbers = set(re.findall(r"\d+(?:[.,:]\d+)*", text))
    for _ in range(2000):
        output = join(text, pieces, generator.random(len(pieces)) < 0.6)
        assert set(re.findall(r"\d+(?:[.,:]\d+)*", output)) <= numbers, output


def test_what_dangles_is_among_what_is_kept():
    """Or the search for what stays would never end: of what must stay nothing goes."""
    text = "The bridge (built in 1874, [rebuilt] in 1902) is “closed”, and the (old) ferry runs."
    offsets = np.array([match.span() for match in re.finditer(r"\s?\w+|\s?[^\w\s]", text)])
    pieces = cut(text, offsets, "word")
    bonds, generator = find_bonds(text, pieces), np.random.default_rng(0)
    for _ in range(300):
        keep = generator.random(len(pieces)) < generator.random()
        assert not (bonds.dangling(keep) & ~keep).any()
    spans = [(at, at + 1) for at, one in enumerate(text) if one in "([“"]
    for rate in (0.4, 0.5, 0.6):
        assert ANY_OPINION.compress(text, rate=rate, unit="word", protect=["readable", *spans]).text


@pytest.mark.parametrize("sign", ["()", "[]", "“”", "„“", "«»", "「」", '""'])
def test_brackets_and_quotation_marks_stay_in_pairs(compressor, sign):
    text = f"The bridge {sign[0]}built in 1874 by Louis Favre{sign[1]} is closed, and the ferry {sign[0]}red{sign[1]} runs. The {sign[0]}old town{sign[1]}. End"
    for chosen in (ANY_OPINION, compressor):
        for rate in np.linspace(0.1, 0.95, 18):
            output = chosen.compress(text, rate=rate, unit="word").text
            one, other = output.count(sign[0]), output.count(sign[1])
            assert one == other and (sign != '""' or one % 2 == 0), output
            assert not re.search(rf"\{sign[0]}\s*\{sign[1]}(?!\.)", output) or sign == '""', output


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.35, 0.5, 0.65, 0.8]), st.booleans())
def test_no_opinion_parts_a_negation_from_its_word(seed, rate, nested):
    """Whatever the scores: both or neither, and "before" with its year only."""
    rng = np.random.default_rng(seed)
    filler = [" ".join(rng.choice(fuzz.ENGLISH[3:], 6)) for _ in range(3)]
    text = f"{filler[0]} not cancelled, {filler[1]} before 2026, {filler[2]} cannot reach."
    output = ANY_OPINION.compress(text, rate=rate, unit="word", nested=nested).text
    for one, other in (("not", "cancelled"), ("before", "2026"), ("cannot", "reach")):
        assert bool(re.search(rf"\b{one}\b", output)) == (other in output), output


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.7]), st.booleans())
def test_a_limit_with_a_negation_keeps_its_measure(seed, rate, nested):
    rng = np.random.default_rng(seed)
    filler = [" ".join(rng.choice(fuzz.ENGLISH[3:], 8)) for _ in range(3)]
    text = f"{filler[0]} no later than noon, {filler[1]} no fewer than four lamps, {filler[2]}."
    output = ANY_OPINION.compress(text, rate=rate, unit="word", nested=nested).text
    for phrase, begins in (("no later than noon", "no later"), ("no fewer than four", "no fewer")):
        assert phrase in output or (begins not in output and phrase.split()[-1] not in output.split()), output


LISTED = (
    "We saw birds, cats, and dogs. In the old house: nothing but dust. Yes, the red one; that is it! "
    "He came – late as ever. For example, the sea. She left early, why? "
) * 2


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.35, 0.5, 0.65, 0.8]), st.booleans())
def test_no_comma_is_left_before_the_end_of_its_sentence(seed, rate, nested):
    rng = np.random.default_rng(seed)
    text = " ".join(rng.permutation(re.findall(r".+?[.!?] ", LISTED)).tolist())
    result = ANY_OPINION.compress(text, rate=rate, unit="word", nested=nested)
    assert not re.search(r"[,;:–] ?[.!?]", result.text), result.text
    # Mask, spans, text and count agree, and nothing is invented.
    assert len(ANY_OPINION.tokenizer.encode(result.text).ids) == result.compressed_tokens <= result.target_tokens
    spans = zip(result.kept_spans.tolist(), result.separated.tolist())
    assert "".join(" " * apart + text[a:b] for (a, b), apart in spans) == result.text
    assert len(result.kept_ids) == len(result.kept_indices)


@pytest.mark.parametrize(
    "kept, protect, left",
    [
        (["example"], (), "example."),
        (["example", ","], (), "example."),
        (["example", ",", " sea"], (), "example, sea."),
        ([","], (), ""),  # the full stop came with the comma alone
        (["example", ","], (",",), "example,."),  # what must stay stays
        (["example", ",", " –"], (), "example."),
    ],
)
def test_what_a_comma_before_the_end_of_a_sentence_takes_along(kept, protect, left):
    text = "For example, the – sea. More."
    offsets = np.array([(m.start(), m.end()) for m in re.finditer(r" ?\w+| ?[^\w\s]", text)])
    pieces = cut(text, offsets, "word")
    names = [text[a:b] for a, b in pairwise(pieces.chars)]
    at = [names.index(word if word in names else f" {word}") for word in kept]
    bonds = find_bonds(text, pieces)
    ranks = np.zeros(len(pieces))
    ranks[[names.index(word) for word in protect]] = -np.inf
    ranked = Ranked([text], [pieces], ranks, bonds)
    keep = np.zeros(len(pieces), dtype=bool)
    keep[at] = True
    assert ranked.render(ranked.complete(keep))[0].strip() == left


def test_a_comma_that_stood_before_a_full_stop_stays_there():
    text = "the cat,. A dog."
    assert ANY_OPINION.compress(text, rate=1.0, unit="word").text == text
    bonds = find_bonds(
        text, pieces := cut(text, np.array([(0, 3), (3, 7), (7, 8), (8, 9), (9, 11), (11, 15), (15, 16)]), "word")
    )
    everything = np.ones(len(pieces), dtype=bool)
    assert not bonds.dangling(everything).any()


def test_lines_sentences_and_speakers_stay_apart(compressor):
    for rate in RATES[1:]:
        chat = compressor.compress(CHAT, rate=rate, unit="word").text
        assert [line.split(":")[0] for line in chat.splitlines()] == ["system", "user", "assistant", "user"], chat
        letter = compressor.compress(LETTER, rate=rate, unit="word").text
        assert "\n\n" in letter and letter.count("\n- ") in (1, 2), (
            letter
        )  # an item of which one word would be left goes whole
        # A sentence goes whole or keeps its end.
        left = sum(word in letter for word in ("voted", "convinced", "comparable", "2027", "closed"))
        assert left >= 3 and letter.count(".") + letter.count("!") == left, letter
    assert "\n" not in compressor.compress(CHAT, rate=0.3, unit="word", protect="none").text.strip()


def test_the_fences_of_code_come_with_it(compressor):
    text = "Please look at `first()` here:\n\n```python\ndef first(items):\n    return items[0]\n```\n\nIt does not help me.\n"
    for target in range(4, 50):
        output = compressor.compress(text, target_tokens=target, unit="word").text
        assert output.count("```") in (0, 2) and output.replace("```", "").count("`") in (0, 2), output
        assert "```" not in output or re.search(r"^```python\n.*\S.*\n```$", output, re.MULTILINE | re.DOTALL), output
    assert "```" in output


TABLE = """| Region | Q1 2026 | Q2 2026 | Change |
|---|---|---|---|
| North | 1,204 | 1,310 | +8.8 % |
| South | 980 | 874 | -10.8 % |
"""


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.floats(0.4, 0.97), st.booleans())  # below, not even the head and one cell fit
def test_a_cell_of_a_table_comes_with_its_row_and_column(rate, nested):
    rows = ANY_OPINION.compress(TABLE, rate=rate, unit="word", nested=nested).text.splitlines()
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    assert all(len(row) == 4 for row in cells[:2]), "a column is gone"
    # Empty cells at the end of a row are left out, as GitHub's Markdown allows.
    assert all(len(row) <= 4 and (len(row) < 2 or row[-1] or len(row) == 4) for row in cells[2:]), (
        "the rows run together"
    )
    assert len(cells) < 2 or set(cells[1]) == {"---"}
    for row in cells[2:]:
        for column, cell in enumerate(row[1:], 1):
            assert not cell or (row[0] and cells[0][column]), rows


@pytest.mark.parametrize(
    "head, row", [("| name | age |", "|  |  |"), ("|  |  |", "| Ann | 40 |"), ("|  |  |", "|  |  |")]
)
def test_a_table_may_have_rows_of_blanks(head, row):
    table = f"{head}\n| --- | --- |\n{row}\n| Ben | 41 |\n"
    result = ANY_OPINION.compress(table, rate=0.7, unit="word")
    assert 0 < result.compressed_tokens <= result.target_tokens


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.7]))
def test_function_words_do_not_outrank_what_they_lead_to(seed, rate):
    """Of "the" and "river", "of" and "stone" the first is not left without the second, but where only such still fit."""
    rng = np.random.default_rng(seed)
    nouns = rng.permutation(
        ["river", "stone", "harbour", "letter", "winter", "figure", "garden", "window", "answer", "market"]
    )
    text = " ".join(f"{one} {noun}" for one, noun in zip(["the", "of", "at", "from", "an"] * 2, nouns))
    output = ANY_OPINION.compress(text, rate=rate, unit="word").text.split()
    alone = [one for one, after in pairwise([*output, "the"]) if len(one) < 5 and len(after) < 5]
    assert len(alone) <= 2, (text, output)


def test_where_nothing_of_a_line_is_left_its_marks_go_too(compressor):
    for target in range(1, 60):
        result = compressor.compress(LETTER + CHAT, target_tokens=target, unit="word")
        assert result.shortfall >= 0 and result.text.strip()
        assert all(any(c.isalnum() for c in line) for line in result.text.strip().splitlines() if line), result.text


@pytest.mark.parametrize("protect", [[], None, "none", ["none"]], ids=str)
def test_the_preset_can_be_switched_off(compressor, protect):
    text = "Your card ending in 7731 will not be cancelled."
    assert "not" not in compressor.compress(text, rate=0.7, unit="word", protect=protect).text
    assert "not" in compressor.compress(text, rate=0.7, unit="word", protect="readable").text


def test_the_preset_leaves_tokens_alone(compressor):
    a, b = (compressor.compress(LETTER, rate=0.5, unit="token", protect=protect) for protect in ("readable", "none"))
    assert a.text == b.text
    with pytest.raises(ValueError, match="both 'readable' and 'none'"):
        compressor.compress(LETTER, protect=["none", "readable"])


def test_what_is_protected_by_name_is_kept_or_refused(compressor):
    for name, finder in (("negations", find_negations), ("roles", find_roles), ("line_breaks", find_line_breaks)):
        result = compressor.compress(CHAT, rate=0.5, unit="word", protect=[name, "none"])
        kept = result.kept_spans.tolist()
        assert all(any(a <= start and end <= b for a, b in kept) for start, end in finder(CHAT))
    with pytest.raises(ValueError, match="smallest feasible budget"):
        compressor.compress("no, no, no, not never", target_tokens=2, unit="word", protect="negations")


@pytest.mark.parametrize("unit", ["not ", "only ", "no\n", "| a | ", "| a | b |\n", "a. ", "**a** ", " ", "ne le pas ", "User: ", "1. ", ">", "<b>x</b>", "(a) ", '"a" ', "<tr><td>a</td></tr>", "09:14 <anna> hi\n", "1 200 "])  # fmt: skip
def test_bonds_take_linear_time(unit):
    def seconds(repeats: int) -> float:
        text = unit * repeats
        pieces = cut(text, np.stack([np.arange(len(text)), np.arange(len(text)) + 1], 1), "word")
        began = time.process_time()
        find_bonds(text, pieces)
        return time.process_time() - began

    assert seconds(10_000) < 40 * seconds(1_000) + 0.2


@pytest.mark.parametrize(
    "style",
    ["[12/05/2026, 09:1{}:33] {}: ", "12.05.26, 09:1{} - {}: ", "09:1{} <{}> ", "[09:1{}:02] <@{}> ", "00:00:0{},100 {}: ", "(9:1{} AM) {}: "],
)  # fmt: skip
def test_who_said_what_stays_in_transcripts_of_many_styles(compressor, style):
    said = [
        "did you cancel the old card?",
        "no, i have not. it ends in 7731",
        "then please don't touch it",
        "fine by me",
    ]
    lines = [style.format(n, name) + one for n, (name, one) in enumerate(zip(["Anna", "tom", "Anna", "tom"], said))]
    assert len(list(find_roles("\n".join(lines)))) == 4
    for chosen in (ANY_OPINION, compressor):
        for rate in (0.5, 0.7, 0.9):
            output = chosen.compress("\n".join(lines), rate=rate, unit="word").text
            for line in output.splitlines():
                if any(one.split()[-1] in line.split() for one in said):
                    assert any(
                        line.startswith(whole[: whole.index(one)].strip()) for whole, one in zip(lines, said)
                    ), output


@pytest.mark.parametrize("rate", [0.3, 0.4, 0.5, 0.6, 0.7])
def test_a_clause_that_denies_stays_apart_from_those_beside_it(compressor, rate):
    """Where its commas go, "not shipped, so you can cancel today" becomes "not shipped today"."""
    for text in (
        "Your order is confirmed. It has not been shipped yet, so you can still cancel it or change the address today if you like.",
        "The blue pills are safe, the red ones are not safe, and you can buy both of them in any shop on Main Street today.",
        "You can cancel, it has not shipped, and the refund is paid within ten days to the card that you used.",
    ):
        behind = set(re.findall(r"\w+", re.split(", (?:so|and) ", text)[1]))
        short = compressor.compress(text, rate=rate, unit="word").text
        for sentence in re.split(r"(?<=[.])\s", short):
            _, _, rest = sentence.partition("not ")
            if rest and (words := re.findall(r"\w+|,", rest)) and behind & set(words):
                assert "," in words[: min(words.index(word) for word in behind & set(words))], short


@pytest.mark.parametrize(
    "text, kept",
    [
        ("static_cast<Native*>(&turbo)->get(Value* args, size_t* count);\n*p = *q; n = 2*3*4;\n", ["Native*>(&turbo)", "Value* args"]),
        ("x ** 2, f(*args, **kwargs)\n", ["(*args, **kwargs)"]),
    ],
)  # fmt: skip
def test_pointers_and_products_are_no_emphasis(text, kept):
    short = ANY_OPINION.compress(text, rate=0.97, unit="word").text
    assert any(part in short for part in kept), short
    assert short.count("*") >= text.count("*") - 2, short


TALK = """User: I'd like to find a place to eat in Brentwood, Latin American if there is one, and not too far from the station.
Assistant: I have found two restaurants in Brentwood: Jalisco's Restaurant, and El Farol on Main Street. Which one do you prefer?
User: The first one. Is it open on Sunday?
Assistant: It is open from 11:30 am to 9 pm on Sunday, and there is music in the evening.
"""


@pytest.mark.parametrize(
    "last", ["User: Please book a table for two at eight.\n", "Ann: Does it have a garden?", "Customer: Why?\n\n"]
)
def test_what_was_asked_last_stays(compressor, last):
    for chosen in (ANY_OPINION, compressor, packaged_compressor()):
        for rate in (0.3, 0.5, 0.7):
            assert chosen.compress(TALK + last, rate=rate, unit="word").text.rstrip().endswith(last.rstrip())


SHORT_TALK = """system: You are a support agent. Never promise refunds.
user: My card was charged twice for order 81924.
assistant: I am sorry. The second charge has not been settled yet.
user: Please don't tell me to wait ten days again! When is it gone?"""


@pytest.mark.parametrize("rate", [0.4, 0.5, 0.6, 0.7])
def test_what_was_asked_last_stays_in_a_short_conversation(compressor, rate):
    for chosen in (ANY_OPINION, compressor, packaged_compressor()):
        short = chosen.compress(SHORT_TALK, rate=rate, unit="word").text
        assert short.endswith("user: Please don't tell me to wait ten days again! When is it gone?"), short


def test_only_a_last_turn_that_asks_stays_before_all_else(compressor):
    for text in (
        TALK,
        TALK + "User: " + "It should not be loud there. " * 9,
        "Note: one\nNote: two\nNote: why?",
        "User: Why?",
        TALK + "User:",
    ):
        places = np.arange(len(text))
        pieces = cut(text, np.stack([places, places + 1], 1), "word")
        assert not find_bonds(text, pieces).first_of_all.any()


SPANS = """### **How It Works (High-Level)**
- **No internal assumptions.** If it fails, call `ng s project_name` and wait.
- Install it (**never as root!**) by `cpan -fi module name`, or `npm ci`.
You do **not** need `ng test all` for that. See **the manual (part 2)** too.
"""


@pytest.mark.parametrize("rate", np.linspace(0.2, 0.9, 15))
def test_signs_of_emphasis_and_code_stay_in_pairs(compressor, rate):
    for chosen in (ANY_OPINION, compressor, packaged_compressor()):
        for line in chosen.compress(SPANS, rate=rate, unit="word").text.splitlines():
            assert line.count("**") % 2 == line.count("`") % 2 == 0, line


def test_settings_at_the_head_of_a_document_stay_closed(compressor):
    text = "---\nname: reviewer of code\ndescription: It reads what others wrote, line by line\n---\n\n# Mission\nRead the code. Say what is wrong.\n\n---\n\nBe brief.\n"
    for chosen in (ANY_OPINION, compressor, packaged_compressor()):
        for rate in np.linspace(0.3, 0.9, 13):
            head, _, _ = chosen.compress(text, rate=rate, unit="word").text.partition("# Mission")
            assert head.count("---") != 1, head


def test_emphasis_goes_whole():
    text = "The **environment variable** (also *env var*) is set, and **Note:** 2 ** 3 is eight for all of us here.\n"
    for rate in (0.4, 0.6, 0.8):
        short = ANY_OPINION.compress(text, rate=rate, unit="word").text
        assert "**" not in short.replace("2 ** 3", "").replace("** 3", "").replace("2 **", ""), short


def test_few_words_are_left_alone_of_their_sentences(compressor, monkeypatch):
    """But of short sentences, and what must stay; a budget's last tokens may leave one."""
    text = (
        "The council met on Monday to talk about the harbour. Building began in the spring of last year already. "
        "Nobody could say how long it would take them. Petersen asked for a new plan with a budget of 12,000 euros. "
        "It rained. The ferry to the island leaves every morning at eight from the old pier.\n"
        "- One item of a list that is longer than the others.\n- Another item with some more words in it, too.\n"
    )

    def left_alone():
        found = []
        for target in range(12, 90, 3):
            short = compressor.compress(text, target_tokens=target, unit="word").text
            words = [re.findall(r"[\w,']*\w", sentence) for sentence in re.split(r"(?<=[.])\s|\n", short)]
            found += [one for one in words if len(one) == 1 and one != ["rained"]]
        return len(found)

    now = left_alone()
    place = text.index("island")
    short = compressor.compress(text, target_tokens=24, unit="word", protect=[(place, place + 6)]).text
    assert "island" in short
    monkeypatch.setattr(ranked_text, "search_without_remnants", search_budget)
    assert 5 * now <= left_alone()


def test_of_quotations_and_brackets_no_empty_ones_are_left(compressor):
    text = (
        '"Labouring under such a delusion, why do you not marry?"\n\n"I sometimes jolly well think I would if I got the chance."\n\n'
        '"Has nobody ever asked you?"\n\n"Only ninnies."\n\n"Do people ask Helen at all?"\n\n"Plentifully."\n'
        "- Customer surveys provide a framework (see the circular of last August.)\n"
    )
    for target in range(10, 90):
        short = compressor.compress(text, target_tokens=target, unit="word").text
        assert not re.search(r'"[.?]?"(?!\n*"\w)|\([.\s]*\)', short.replace('"\n', '" \n')), short
        assert all(line.count('"') in (0, 2) for line in short.splitlines()), short


@pytest.mark.parametrize(
    "text, one, other, both",
    [
        ("The board moves the meeting from Thursday to Friday because of the strike.", "Thursday", "Friday", "from Thursday to Friday"),
        ("The night train from Berlin to Hamburg was cancelled again today.", "Berlin", "Hamburg", "from Berlin to Hamburg"),
        ("The ferry Oslo to Kiel sails again.", "Oslo", "Kiel", "Oslo to Kiel"),
        ("Das Geschäft ist jetzt von Montag bis Freitag am Abend offen.", "Montag", "Freitag", "Montag bis Freitag"),
        ("Le train va de Paris à Lyon sans arrêt chaque soir.", "Paris", "Lyon", "de Paris à Lyon"),
    ],
)  # fmt: skip
def test_between_two_names_the_way_is_told(text, one, other, both):
    came = 0
    for chosen in (fuzz.make_compressor(), packaged_compressor()):
        for rate in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
            output = chosen.compress(text, rate=rate, unit="word").text
            if one in output and other in output:
                came += 1
                assert both in output, output
    assert came


@pytest.mark.parametrize("rate", [0.3, 0.45, 0.6, 0.75])
def test_words_of_chinese_are_kept_or_dropped_whole(rate):
    text = "应用程序在启动时读取配置文件，如果字符串不是有效的地址，服务器会返回错误信息。管理员可以修改数据库的端口。"
    words = [
        "应用",
        "程序",
        "启动",
        "读取",
        "配置",
        "文件",
        "字符串",
        "地址",
        "服务器",
        "返回",
        "错误",
        "信息",
        "管理员",
        "修改",
        "数据库",
        "端口",
    ]
    for chosen in (fuzz.make_compressor(), packaged_compressor()):
        output = chosen.compress(text, rate=rate, unit="word").text
        for word in words:
            assert word in output or not set(word) & (set(output) - set("".join(w for w in words if w != word))), (
                word,
                output,
            )
