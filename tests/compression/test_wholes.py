"""What is one piece by words: numbers with sign and unit, dates, addresses, paths, names; and that nothing new comes of joining."""

import random
import re
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import fuzz_compressor as fuzz
from tokforget import Compressor
from tokforget.compression import wholes
from tokforget.compression.pieces import cut
from tokforget.compression.protection import BUILT_IN


ANY_OPINION = fuzz.make_compressor()


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return Compressor.from_pretrained("embedded")


def words(text: str) -> list[str]:
    """Pieces by words of a text whose characters are tokens."""
    places = np.arange(len(text))
    chars = cut(text, np.stack([places, places + 1], 1), "word").chars.tolist()
    return [text[a:b].strip() for a, b in pairwise(chars)]


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("84,000 homes; 41,300; 1.2 billion", ["84,000", "homes", ";", "41,300", ";", "1.2 billion"]),
        ("at 2026-11-02T09:14:33Z, 12:45", ["at", "2026-11-02T09:14:33Z", ",", "12:45"]),
        ("help@nordbank.example, o'brien@x.org.", ["help@nordbank.example", ",", "o'brien@x.org", "."]),
        ("SN81924865; code=51", ["SN81924865", ";", "code=51"]),
        ("0.4M parameters, Python 3.11 or", ["0.4M", "parameters", ",", "Python", "3.11", "or"]),
        ("the remaining 15 percent", ["the", "remaining", "15 percent"]),
        (".5 mg, -$35, 10^6, <3, ::1", [".5 mg", ",", "-$35", ",", "10^6", ",", "<3", ",", "::1"]),
        ("10–20 or ₹450 or 12,750", ["10–20", "or", "₹450", "or", "12,750"]),
        ("$3.5M-$4M", ["$3.5M-$4M"]),
        ("$1,299.99 and $3.5M and 5 % and 20°C", ["$1,299.99", "and", "$3.5M", "and", "5 %", "and", "20°C"]),
        ("1\u2009000\u2009000 or 1\u00a0000 or 12/31/2024", ["1\u2009000\u2009000", "or", "1\u00a0000", "or", "12/31/2024"]),
        ("30 September 2027, May 12, 2026", ["30 September 2027", ",", "May 12, 2026"]),
        ("see https://a.b/c_(d)?q=1&r=2. Or", ["see", "https://a.b/c_(d)?q=1&r=2", ".", "Or"]),
        ("in /usr/lib/x.py, C:\\a\\b, C:\\Program Files\\x", ["in", "/usr/lib/x.py", ",", "C:\\a\\b", ",", "C:\\Program Files\\x"]),
        ("C:/Users/x, git@host:a/b, X-Request-Id", ["C:/Users/x", ",", "git@host:a/b", ",", "X-Request-Id"]),
        ("a_b os.path --flag -x #123 v1.2.3 f()", ["a_b", "os.path", "--flag", "-x", "#123", "v1.2.3", "f()"]),
        ("- 5 items\n> 6 more", ["-", "5", "items", "", ">", "6", "more"]),
        ("at 1 200 rpm for 1 234 567,89 €, 2 × 500 mg", ["at", "1 200 rpm", "for", "1 234 567,89 €", ",", "2 × 500 mg"]),
        ("call +49 (0)30 901820 or (555) 010-4477 or 030/90 18 20", ["call", "+49 (0)30 901820", "or", "(555) 010-4477", "or", "030/90 18 20"]),
        ("call 030 1234 or 0171 5551234, tel. 555 0199.", ["call", "030 1234", "or", "0171 5551234", ",", "tel", ".", "555 0199", "."]),
        ("in 2019 1234 people, 0 1234, 0.5 100 or 12 0199", ["in", "2019", "1234", "people", ",", "0", "1234", ",", "0.5", "100", "or", "12", "0199"]),
        ("主要なクラウドプロバイダはFastAPIをデプロイする", ["主", "要", "な", "クラウドプロバイダ", "は", "FastAPI", "を", "デプロイ", "す", "る"]),
        ("ﾃｽﾄ・サーバー", ["ﾃｽﾄ", "・", "サーバー"]),
        ("IBAN DE89 3704 0044 0532 0130 00, 4111 1111 1111 1111", ["IBAN", "DE89 3704 0044 0532 0130 00", ",", "4111 1111 1111 1111"]),
        ("at 2001:db8::ff00:42:8329/64, 13°24′18″E", ["at", "2001:db8::ff00:42:8329/64", ",", "13°24′18″E"]),
        ("Art. 5(1)(f), 5'11\", i.e. lib@^4.17.21", ["Art", ".", "5(1)(f)", ",", "5'11\"", ",", "i.e.", "lib@^4.17.21"]),
        ("id price>=10.50 %APPDATA%\\x {{user.name}}", ["id", "price>=10.50", "%APPDATA%\\x", "{{user.name}}"]),
        ("im 3. Quartal, 1.234,50 kr, 6×10^23 mol⁻¹", ["im", "3.", "Quartal", ",", "1.234,50 kr", ",", "6×10^23 mol⁻¹"]),
        ("in ~/Library/Application Support/x.plist or", ["in", "~/Library/Application Support/x.plist", "or"]),
        ("tel. 030 1234567 or 0171 1234567, 040 / 123 45 67", ["tel", ".", "030 1234567", "or", "0171 1234567", ",", "040 / 123 45 67"]),
        ("up +3.5% or +12.50 €, 10 ± 2 mg, 5 +/- 0.5 cm", ["up", "+3.5%", "or", "+12.50 €", ",", "10 ± 2 mg", ",", "5 +/- 0.5 cm"]),
        ("at 20-30 km/h, 9.81 m/s², 5 mg/kg, 50 Mbit/s, 5 nm", ["at", "20-30 km/h", ",", "9.81 m/s²", ",", "5 mg/kg", ",", "50 Mbit/s", ",", "5 nm"]),
        ("for AED 50, A$5, ₪50, CHF 5.–, kr 50, 50 SGD", ["for", "AED 50", ",", "A$5", ",", "₪50", ",", "CHF 5.–", ",", "kr 50", ",", "50 SGD"]),
        ("v1.2.3-rc.1+b5 at ::ffff:192.0.2.1, fe80::1%eth0", ["v1.2.3-rc.1+b5", "at", "::ffff:192.0.2.1", ",", "fe80::1%eth0"]),
        ("2 h 30 min, 5 ft 3 in, 6 lb 3 oz, ½ cup, 6.02·10²³", ["2 h 30 min", ",", "5 ft 3 in", ",", "6 lb 3 oz", ",", "½", "cup", ",", "6.02·10²³"]),
        ("ages 18+, the '90s, § 12, 10**6, 1⁄3", ["ages", "18+", ",", "the", "'90s", ",", "§ 12", ",", "10**6", ",", "1⁄3"]),
        ("see <b>5</b> now", ["see", "<b>", "5", "</b>", "now"]),
        ("one, two. (three) so: four", ["one", ",", "two", ".", "(", "three", ")", "so", ":", "four"]),
    ],
)  # fmt: skip
def test_one_thing_is_one_piece(text, pieces):
    assert words(text) == pieces


@pytest.mark.parametrize(
    "name, text, found",
    [
        ("numbers", "take .5 mg, -$35, 10^6, <3, x < 4, ::1, 10–20, ₹450, 15 percent", [".5 mg", "-$35", "10^6", "<3", "< 4", "::1", "10–20", "₹450", "15 percent"]),
        ("numbers", "p<0.05, n>=30, <b>5</b>, x==3, a<h1>", ["<0.05", "n>=30", "5", "x==3", "h1"]),
        ("numbers", "rose +3.5 % to 030 1234567 in 14 h 30", ["+3.5 %", "030 1234567", "14 h 30"]),
        ("numbers", "01.02.2024 10:30 and 007 12, +5 of 09", ["01.02.2024", "10:30", "007", "12", "+5", "09"]),
        ("paths", "C:\\Program Files\\x or C:/Users/x", ["C:\\Program Files\\x", "C:/Users/x"]),
        ("emails", "o'brien@x.org, git@host:a/b", ["o'brien@x.org", "git@host:a/b"]),
        ("identifiers", "X-Request-Id, well-known", ["X-Request-Id"]),
    ],
)  # fmt: skip
def test_protectors_take_the_whole_of_it(name, text, found):
    assert [text[a:b] for a, b in BUILT_IN[name](text)] == found


THINGS = ["84,000", "41,300", "1.2", "$3.5M", "2026-11-02T09:14:33Z", "12:45", "help@nordbank.example", "code=51", "SN81924865", "3.11",
          "-35", ".5", "#123", "--flag", "a_b", "os.path", "/usr/lib/x.py", "C:\\a\\b", "10–20", "20°C", "5", "7", "no", "fox", "Fuel"]  # fmt: skip
GLUE = [" ", ", ", ". ", "; ", " (", ") ", ")", " - ", ": ", "\n", " %", "(", "’s "]
TEXTS = st.lists(st.tuples(st.sampled_from(THINGS), st.sampled_from(GLUE)), min_size=1, max_size=30).map(
    lambda parts: "".join(a + b for a, b in parts)
)


def names(text: str) -> set[str]:
    """All that reads as one word, number or name, and each number in it."""
    runs = {run.strip(".,;:!?()-/’%#") for run in re.findall(r"[^\s()]+", text)}
    return (runs | set(re.findall(r"\d+(?:[.,:]\d+)*", text))) - {""}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(TEXTS, st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.sampled_from(["readable", "none"]))
def test_no_number_or_name_comes_of_joining(text, rate, protect):
    output = ANY_OPINION.compress(text, rate=rate, unit="word", protect=protect).text
    assert names(output) <= names(text), (text, output)


def test_the_cases_keep_or_drop_their_numbers_whole(compressor):
    text = "The plan has 84,000 homes; 41,300 were built for 1.2 billion euros. See help@nordbank.example at 2026-11-02T09:14:33Z, 15 percent."
    for rate in (0.3, 0.5, 0.7, 0.9):
        output = compressor.compress(text, rate=rate, unit="word").text
        assert set(re.findall(r"\S*\d\S*\w|\S+@\S+", output)) <= set(re.findall(r"\S*\d\S*\w|\S+@\S+", text)), output
        assert ("84,000" not in output) or "84,000 homes" in output
        assert ("15" in output) == ("15 percent" in output) and ("1.2" in output) == ("1.2 billion euros" in output)


def test_what_is_looked_for_at_signs_alone_is_what_the_patterns_find():
    """Identifiers, and letters and ordinals with full stops: random strings of what they are made of, and of what parts them."""
    draw = random.Random(0)
    parts = ["a", "B", "Bc", "aB", "é", "7", "42", ".", "..", ". ", "_", "-", "--", "$", "@", "#", "(", "()", "{", "}", "0x", " ", "\n", "\t",
             "\u00a0", "\u2028", "\x1f", "am ", "die ", "x.y", "U.S.", "3. M", "橋", "\U0001f600", "\ud800"]  # fmt: skip
    texts = ["".join(draw.choices(parts, k=draw.randrange(30))) for _ in range(4000)] + [
        "",
        "A1",
        "a_",
        "f()",
        "e.g.",
        "am 3. Mai",
    ]
    found = 0
    for text in texts:
        for own, pattern in ((wholes._identifiers, wholes.COMPILED["identifiers"]), (wholes._dotted, wholes._DOTTED)):
            expected = [match.span() for match in pattern.finditer(text)]
            assert list(own(text)) == expected, (text, pattern)
            found += len(expected)
    assert found > 5000


def test_numbers_are_those_of_a_search_of_every_character():
    generator = random.Random(0)
    parts = [
        *" \n\t1207.,:-+/$€%½§<>=±'’(x)aF°²",
        " September ",
        " price>=",
        " 10 ± 2",
        "::1",
        "ab" * 40,
        " " * 70,
        " USD ",
    ]
    for _ in range(3000):
        text = "".join(generator.choices(parts, k=generator.randint(1, 60)))
        expected = [
            (start + match.start(), start + match.end())
            for start, line in zip(accumulate((len(one) + 1 for one in text.split("\n")), initial=0), text.split("\n"))
            for match in wholes.COMPILED["numbers"].finditer(line)
        ]
        assert list(wholes.find("numbers", text)) == expected, text
