"""
Spans that count as one word although they contain more than letters: quantities with sign, currency and unit, dates,
URLs, e-mails, paths, identifiers. The finders of `protect` use the same patterns.

Every pattern takes linear time: it begins at the edge of a run of its own characters, and its parts cannot match the
same character in two ways.
"""

import re
import string
from collections.abc import Iterator

import numpy as np


_S = "[ \u00a0\u202f\u2009]"
_CURRENCY = "$€£¥฿¢\u20a0-\u20cf"
_CODES = (
    "USD|EUR|GBP|CHF|JPY|INR|CNY|RUB|SEK|NOK|DKK|PLN|AUD|CAD|NZD|SGD|HKD|TWD|KRW|BRL|MXN|ARS|ZAR|AED|SAR|ILS|CZK|HUF|RON|UAH|THB|IDR|MYR|"
    "PHP|VND|BTC|ETH"
)
# Digits with letters around them (GPT2, 3rd), and more of them behind a separator: 1,000, 12:30, 2024-05-01, 10^6, 10–20, 1e-5.
# What follows a single digit sign of its own, such as 3½, is a letter to Python; ½ alone is a number, too.
_DIGITS = r"[^\W\d]*\d\w*"
_FRACTIONS = "¼-¾⅐-⅞"
_NUMBER = (
    rf"(?:{_DIGITS}|(?<!\.)\.\d\w*|[{_FRACTIONS}])"
    rf"(?:(?:[.,:/'’+\-‐‑–—−^×*=·⁄٫٬]|\*\*|[\u00a0\u202f\u2009](?=\d{{3}}(?!\d))|[\-–/][{_CURRENCY}]){_DIGITS})*"
    # how prices end that have no cents, and what begins at a number: CHF 50.–, 18+
    rf"(?:[.,](?:[–—]|--?)(?![\w–—-])|\+(?![\w+=]))?"
    # what it may be off by: 10 ± 2
    rf"(?:{_S}?(?:±|\+/[-−–]){_S}?{_DIGITS}(?:[.,]{_DIGITS})*)?"
)
# Units that may follow a space. Units that are often ordinary words are left out: "in", "A".
_UNITS = (
    "percent|per cent|percentage points?|Prozent|pour cent|por ciento|por cento|per cento|procent|процент(?:а|ов)?|pp|bps|"
    "thousand|million|billion|trillion|Tausend|Millionen|Million|Milliarden|Milliarde|Mio\\.?|Mrd\\.?|millions?|milliards?|"
    "millón|millones|milhões|bilhões|milioni|miliardi|miljoen|miljard|тысяч[аи]?|млн\\.?|млрд\\.?|bn|mn|k|"
    "mm|cm|dm|km|m|ft|yd|miles?|m²|km²|m2|km2|m³|m3|ha|acres?|hectares?|"
    "nm|[µμ]m|mcg|[µμ]g|mg|kg|g|t|lbs?|oz|tons?|tonnes?|[µμ]l|m[lL]|cl|d[lL]|[lL]|litres?|liters?|Liter|gallons?|"
    "ns|[µμ]s|ms|s|sec|min|h|hrs?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|Sekunden|Minuten|Stunden|Tagen?|Wochen|Monaten?|Jahren?|"
    "Uhr|am|pm|a\\.m\\.|p\\.m\\.|AM|PM|"
    "Hz|kHz|MHz|GHz|kB|KB|MB|GB|TB|PB|KiB|MiB|GiB|TiB|[kKMG]?bps|[kMG]bit|bits?|bytes?|ppm|ppb|px|dpi|fps|W|kW|MW|GW|kWh|MWh|GWh|TWh|V|kV|mA|mV|Ah|mAh|"
    "km/h|mph|m/s|rpm|mmHg|mmol|mol|kcal|kJ|J|N|Pa|hPa|kPa|MPa|m?bar|psi|dB|"
    f"euros?|dollars?|pounds?|Euro|francs?|yen|rupees?|kr|Kč|zł|Ft|lei|руб\\.?|грн\\.?|{_CODES}"
)
# What a quantity is of: 20 km/h, 9.81 m/s², 5 mg/kg, 3 €/m^2.
_PER = r"(?:/[^\W\d_]{1,5}(?:[²³]|\^?-?\d)?(?!\w))?"
_UNIT = rf"(?:{_S}?(?:[%‰](?!\w)|[′″](?:{_S}?[NSEWO](?!\w))?|°{_S}?[CFK]?|[{_CURRENCY}](?!\d){_PER})|{_S}?(?:{_UNITS})(?![^\W²³])(?:⁻[¹²³⁴⁵⁶])?{_PER})"
_QUANTITY = (
    rf"(?<!\w)(?:(?:(?<!^)(?<![\"'/])[<>]=?|[≤≥≈±~∼]|§§?|№){_S}?)?(?:[+\-−](?![+\-−]))?"
    rf"(?:(?:(?:US|CA|AU|NZ|HK|NT|MX|[RACS])?[{_CURRENCY}]|(?:{_CODES}|Rs\.?|kr\.?|S?Fr\.|Rp\.?|RM)(?=[ \u00a0\d])){_S}?[+\-−]?)?"
    rf"(?:\d[\d.,]*{_S}[x×]{_S}(?=\d))*{_NUMBER}{_UNIT}{{0,2}}"
)
# Right behind what it is compared with: p<0.05, price>=10.50; but <b>5 is a tag with what it holds.
_COMPARED = rf"(?:(?<=\w)<=?|(?<=[\w)])[≤≥≈±]|(?<![\w</=\"'])[A-Za-z][\w.]{{0,30}}(?:>=?|[!=]=))(?=[+\-−]?[.\d])[+\-−]?{_NUMBER}{_UNIT}{{0,2}}"
_MONTHS = (
    "January|February|March|April|May|June|July|August|September|October|November|December|Jan\\.?|Feb\\.?|Mar\\.?|Apr\\.?|Jun\\.?|"
    "Jul\\.?|Aug\\.?|Sept?\\.?|Oct\\.?|Nov\\.?|Dec\\.?|Januar|Februar|März|Mai|Juni|Juli|Oktober|Dezember|janvier|février|mars|avril|mai|juin|"
    "juillet|août|septembre|octobre|novembre|décembre|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|"
    "noviembre|diciembre"
)
_DATE = (
    rf"(?<!\w)\d{{1,2}}(?:st|nd|rd|th|er|\.)?{_S}(?:of |de )?(?:{_MONTHS})(?!\w)(?:,?(?: de)?{_S}\d{{4}}(?!\w))?"
    rf"|(?<!\w)(?:{_MONTHS}){_S}\d{{1,2}}(?:st|nd|rd|th)?(?!\w)(?:,{_S}\d{{4}}(?!\w))?"
)
# Quantities of two units, of which one alone is another quantity: 2 h 30 min, 5 ft 3 in, 6 lb 3 oz, 14 h 30.
_TWO_UNITS = (
    rf"(?<!\w)\d+{_S}?(?:(?:h|hrs?|hours?|Std\.?|Stunden?|heures?|horas?){_S}?(?:and |und |et |y )?\d+(?:{_S}?(?:m|mins?|min|minutes?|Minuten|minutos))?"
    rf"|(?:ft|feet|foot){_S}?\d+{_S}?(?:in|inch|inches)|lbs?{_S}?\d+{_S}?oz)(?!\w)"
)
# Two dots and more: 1.2.3-rc.1, v2.0.0-beta.2+build.5.
_VERSION = r"(?<![\w.])[vV]?\d+(?:\.\d+){2,3}[-+][0-9A-Za-z]+(?:[.+-][0-9A-Za-z]+)*"
_HEX = "[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4})*"
_IPV6 = rf"(?<![\w:])(?:{_HEX})?::{_HEX}(?:(?:\.\d{{1,3}}){{3}})?(?:%\w+)?(?:/\d{{1,3}})?(?!\w)"
# Digits in groups with a plain space between them, which are one number: thousands, telephones, cards, accounts.
_GROUPED = (
    rf"(?<![\w.,])[+\-−]?\d{{1,3}}(?: \d{{3}})+(?!\d)(?:[.,]\d+)?{_UNIT}{{0,2}}"
    r"|(?<![\w+])(?=\+\d(?:[ ./()-]{0,2}\d){6})\+\d{1,3}(?:[ ./-]?(?:\(\d{1,5}\)|\d{1,12})){1,7}(?!\w)"
    # of a telephone in the country itself: 030 1234, 0171 5551234, 555 0199
    r"|(?<![\w.,+])0\d{1,4}[ /]\d{3,9}(?: \d{2,6}){0,3}(?![\w%])(?![.,:]\d)|(?<![\w.,+])\d{3} 0\d{3}(?![\w%])(?![.,:]\d)"
    r"|(?<!\w)\(\d{2,5}\)[ -]?\d{2,9}(?:[ -]\d{2,6}){0,4}(?!\w)"
    r"|(?<!\w)\d{2,5}[/ ]\d{2,4}(?: \d{2,4}){1,5}(?!\w)"
    # without the country's code: a nought, and so much behind it that it is no column of a table
    r"|(?<![\w.,:])0\d{1,4}(?: ?[/–-] ?| )\d{2,4}(?: \d{2,4}){1,4}(?!\w)|(?<![\w.,:])0\d{1,4}(?: ?[/–-] ?| )\d{5,9}(?!\w|[.,:]\d)"
    r"|(?<!\w)[A-Z]{2}\d{2}(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?(?!\w)"
    rf"|(?<!\w)\d{{1,3}}°{_S}?\d{{1,2}}[′'](?:{_S}?\d{{1,2}}(?:[.,]\d+)?[″\"])?(?:{_S}?[NSEWO](?!\w))?"
    r"|(?<!\w)\d'\d{1,2}[\"″]|(?<!\w)\d+[a-z]?(?:\(\w{1,4}\))+"
)
_NAME = r"[\w.@%+~-]"
# A word of a folder's name that contains spaces: C:\Program Files\x
_FOLDER = r"[^\s\\/:*?\"<>|,;]+"

# All but what is right behind its comparison: most lines have no sign of one.
_PLAIN = f"{_DATE}|{_TWO_UNITS}|{_IPV6}|{_VERSION}|{_GROUPED}|(?<!\\w)['’]\\d\\ds(?!\\w)|{_QUANTITY}"

PATTERNS = {
    # 7, -$35, <3, .5 mg, 1,000, 12:30, 2024-05-01, 30 May 2024, $9.99, 50 %, 1.2 billion, 1e-5, 10–20, and words with a digit in them
    "numbers": f"{_PLAIN}|{_COMPARED}",
    "urls": r"(?<!\w)(?:[A-Za-z][A-Za-z0-9+.-]{1,15}://|www\.|mailto:)[^\s<>\"`\u3000-\u303f\uff01-\uff20]+",
    "emails": r"(?<![\w.+%'’-])[\w.+%'’-]+@(?:[\w-]+(?:\.[\w-]+)+|[\w-]+(?=:[\w~/]))(?::[\w.~/-]+)?",
    "paths": (
        rf"(?<![\w.~/:%@+-])(?:(?:~|\.\.?)?/(?:{_NAME}+/)*{_NAME}+(?:/|(?: [A-Z]{_NAME}*/{_NAME}*(?:/{_NAME}+)*))?|(?:{_NAME}+/){{2,}}{_NAME}*|(?:{_NAME}+/)+{_NAME}*\.\w+)"
        rf"|(?<!\w)(?:[A-Za-z]:\\|\\\\)(?:{_FOLDER}(?: {_FOLDER}){{0,3}}\\)*[^\s\"<>|*?]*|(?<!\w)[A-Za-z]:/[^\s\"<>|*?]*"
    ),
    # snake_case, camelCase, CamelCase, ACRONYM, dotted.name, call(), --flag, $VARIABLE, @name, #tag, 0xFF, X-Request-Id, UUIDs
    "identifiers": (
        r"(?<!\w)[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?!\w)"
        r"|(?<!\w)(?:[^\W\d]\w*(?:\.[^\W\d]\w*)+(?:\(\))?|[^\W\d]\w*\(\))"
        r"|(?<!\w)[A-Z]\w*(?:-[A-Z]\w*)+(?!\w)"
        r"|(?<!\w)(?:[^\W_]*_\w+|[a-z0-9]+[A-Z]\w*|[A-Z][a-z0-9]+[A-Z]\w*|[A-Z]{2}\w*|[A-Z][0-9]\w*|0x[0-9A-Fa-f]+)"
        r"|(?<![\w-])--?[A-Za-z][\w-]*|(?<![\w$@#])[$@#]\w+|\$\{\w+\}"
    ),
}  # fmt: skip
COMPILED = {name: re.compile(pattern, re.MULTILINE) for name, pattern in PATTERNS.items()}
# Names that end in special characters, a setting with its value, and a word of code.
_MORE = re.compile(
    r"(?<!`)`[^`\s]+`(?!`)|(?<!\w)(?:[A-Za-z]\+\+|[A-Z]#)(?!\w)|(?<![\w-])--[A-Za-z][\w-]*=[^\s\"']+"
    # a comparison without spaces, a place for a value in a template, a variable of Windows, a package with its version
    r"|(?<![\w.<>/=\"'])[A-Za-z_][\w.]*(?:[<>!]=|[<>])-?\d[\w.]*|\{\{[^{}\n]{1,60}\}\}|(?<!\w)%\w+%(?:\\[^\s\"<>|*?]*)?"
    r"|(?<![\w@])@?[\w./-]+@[\^~]?\d[\w.+-]*"
)
# A tag of HTML or XML with its attributes, a comment, a declaration, and scripts and styles with their contents.
_ATTRIBUTES = r"(?:\s+[\w:@.-]+(?:\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>=]+))?)*"
TAG = re.compile(rf"<(/?)([A-Za-z][\w:-]*){_ATTRIBUTES}\s*(/?)>")
_MARKUP = re.compile(
    r"<(script|style)(?=[\s>])[^<>]*>(?:(?!</\1).){0,4000}</\1\s*>|<!--(?:(?!-->).){0,2000}-->|<![A-Za-z][^<>]*>|<\?[^<>]*\?>"
    rf"|</?[A-Za-z][\w:-]*{_ATTRIBUTES}\s*/?>",
    re.DOTALL | re.IGNORECASE,
)
# An ordinal in German, and letters that each end in a full stop.
_DOTTED = re.compile(
    r"(?<!\w)(?:[A-Za-z]\.){2,}(?!\w)|(?:(?<=\b[ia]m )|(?<=\bvom )|(?<=\bzum )|(?<=\bde[rmns] )|(?<=\bdie )|(?<=\bdas ))\d{1,2}\.(?= [^\W\d_])"
)
# Words of Chinese and Japanese, which have no spaces between them: most have two characters, and words of one character
# are among those that are left out here. The last three of an odd run are one word.
_HAN_FUNCTION = "的了和是在不时時我你他她它这那這就也都与與及或等被把从從到对對为為以于於而但並并由其之所将將可会會能要没沒未无無很更最再又还還只已个個们們"
_HAN = rf"(?:(?![{_HAN_FUNCTION}])[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])"
_HAN_WORD = re.compile(f"{_HAN}{{2,3}}(?!{_HAN})|{_HAN}{{2}}")
_HAS_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
# Before a full stop within the former, or behind the digits of the latter.
_DOT = re.compile(r"\.(?=[A-Za-z]\.| )")
# A text without one of these characters has no such span.
_SIGNS = {"urls": ("://", "www.", "mailto:"), "emails": ("@",), "paths": ("/", "\\")}
_PLAIN_NUMBERS, _COMPARISON = re.compile(_PLAIN, re.MULTILINE), re.compile("[<>=≤≥≈±]")
_HAS_NUMBER = re.compile(rf"[\d{_FRACTIONS}]|::")
# More characters than a number has before its first digit, apart from letters directly before it.
_BEFORE_DIGIT = 64
# Ends a sentence rather than a URL or a path.
_TRAILING = ".,;:!?'*_"
_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))


def matches(pattern: re.Pattern, text: str) -> Iterator[tuple[int, int]]:
    """Spans of a pattern."""
    return (match.span() for match in pattern.finditer(text))


def trimmed(pattern: re.Pattern, text: str) -> Iterator[tuple[int, int]]:
    """
    Spans of a pattern without surrounding punctuation, and without a closing bracket whose opening one is outside.
    """
    for match in pattern.finditer(text):
        start, end = match.span()
        surplus = {close: text.count(close, start, end) - text.count(open_, start, end) for open_, close in _BRACKETS}
        while end > start and (text[end - 1] in _TRAILING or surplus.get(text[end - 1], 0) > 0):
            if text[end - 1] in surplus:
                surplus[text[end - 1]] -= 1
            end -= 1
        yield start, end


def find(name: str, text: str) -> Iterator[tuple[int, int]]:
    """Spans of one kind, a key of `PATTERNS`."""
    if not any(sign in text for sign in _SIGNS.get(name, ("",))):
        return iter(())
    if name == "numbers":
        return _numbers(text)
    if name == "identifiers":
        return _identifiers(text)
    return (trimmed if name in ("urls", "paths") else matches)(COMPILED[name], text)


def _numbers(text: str) -> Iterator[tuple[int, int]]:
    """Spans of numbers. Searched only in the words before a digit, because most words of prose are far from one."""
    start, line_end, pattern = 0, -1, _PLAIN_NUMBERS
    while digit := _HAS_NUMBER.search(text, start):
        if digit.start() > line_end:  # a number ends with its line
            start = text.rfind("\n", start, digit.start()) + 1 or start
            line_end = text.find("\n", digit.start())
            line_end = len(text) if line_end < 0 else line_end
            pattern = COMPILED["numbers"] if _COMPARISON.search(text, start, line_end) else _PLAIN_NUMBERS
        begin = max(digit.start() - _BEFORE_DIGIT, start)
        for _ in range(3):  # its letters, and a comparison and a currency before them
            begin = max(text.rfind(" ", start, begin), start)
        match = pattern.search(text, begin, line_end)
        if match is None:
            start = line_end
        else:
            yield match.span()
            start = match.end()


# Classes of characters for identifiers: white space, which none contains; a letter or digit, which forms one with a
# following capital; a character that may form one by itself; and characters that may form one with the next character.
_SPACE, _WORD, _CAPITAL, _SIGN, _DOT_SIGN, _OPEN, _CLOSE = (1 << bit for bit in range(7))
_KINDS = np.zeros(256, dtype=np.uint8)
for _kind, _chars in ((_SPACE, string.whitespace), (_WORD, string.ascii_letters + string.digits), (_CAPITAL, string.ascii_uppercase),
                      (_SIGN, string.digits + "_$@#-"), (_DOT_SIGN, "."), (_OPEN, "("), (_CLOSE, ")")):  # fmt: skip
    _KINDS[list(_chars.encode())] |= _kind


def _identifiers(text: str) -> Iterator[tuple[int, int]]:
    """
    Spans of identifiers. Only runs between white space that may contain one are searched, because most words of prose
    are plain. Characters beyond ASCII are none of the special characters and do not separate runs.
    """
    kinds = _KINDS[np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)]
    here, behind = kinds[:-1], kinds[1:]
    found = kinds & _SIGN > 0
    found[:-1] |= (here & _WORD > 0) & (behind & _CAPITAL > 0)
    found[:-1] |= (here & _DOT_SIGN > 0) & (behind & _SPACE == 0)
    found[:-1] |= (here & _OPEN > 0) & (behind & _CLOSE > 0)
    places = found.nonzero()[0]
    if not len(places):
        return
    spaces = np.concatenate([[-1], (kinds & _SPACE > 0).nonzero()[0], [len(text)]])
    runs = np.unique(spaces.searchsorted(places))
    pattern = COMPILED["identifiers"]
    for start, end in zip((spaces[runs - 1] + 1).tolist(), spaces[runs].tolist()):
        for match in pattern.finditer(text, start, end):
            yield match.span()


def _dotted(text: str) -> Iterator[tuple[int, int]]:
    """Spans of `_DOTTED`, searched only at full stops that may belong to one."""
    end = 0
    for dot in _DOT.finditer(text):
        at = dot.start()
        before = text[at - 1 : at]
        # The full stop follows a single letter, or one or two digits.
        for start in (at - 1,) if before.isalpha() else (at - 2, at - 1) if before.isdecimal() else ():
            if start >= end and (match := _DOTTED.match(text, start)):
                end = match.end()
                yield match.span()
                break


def find_wholes(text: str) -> Iterator[tuple[int, int]]:
    """Spans that word units must not cut."""
    for name in PATTERNS:
        yield from find(name, text)
    if any(sign in text for sign in "`+#<>=%{@"):
        yield from matches(_MORE, text)
    if "." in text:
        yield from _dotted(text)
    if not text.isascii() and _HAS_HAN.search(text):
        yield from matches(_HAN_WORD, text)
    if "<" in text and ">" in text:
        yield from matches(_MARKUP, text)
