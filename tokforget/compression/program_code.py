"""
Tell program code from other texts, and cut it into statements and blocks.

Code is kept or dropped by whole lines. A line is kept together with the lines that open and close its blocks, with the
other lines of its statement, and with the limiting clauses of its SQL query.
"""

import re
from collections.abc import Iterable
from itertools import pairwise

from tokforget.compression.parts import Parts
from tokforget.compression.records import SIMILAR
from tokforget.text_units import STOP_WORDS, bare_word


_CODE_LINE = re.compile(
    r"\s*(?:(?:def|class|import|return|if|for|while|elif|except|with|async|await|raise|yield|assert|lambda|function|const|let|var|public|"
    r"private|protected|static|void|int|using|namespace|package|func|fn|impl|struct|enum|export|switch|case|throw|new|module|end|"
    r"SELECT|INSERT|UPDATE|CREATE|FROM|WHERE)\b.*[:({\[;,=)\]}\\]\s*$|(?:import|from|return|export|package|use|using)\s[\w.{*]+.*$"
    r"|(?:if|elif|else|for|while|with|except)\b[^:]*:\s+(?:return|raise|continue|break|pass|yield|[\w.]+(?:\(|\s*=))"
    r"|(?:else|try|finally|do|then|fi|done|end|pass|break|continue|return)\b\s*[:{;]?\s*$|@[\w.]+(?:\(.*\))?\s*$|#include\b|#!|//|/\*|\*/|#\s"
    r"|.*;\s*(?:then|do)\s*$|(?:esac|then|do)\s*$|\w+\(\)\s*\{?\s*$|set -[a-z]|exit \d|echo [\"'$]|export \w+=|\S+ .*(?:<<-?\s*['\"]?\w+['\"]?|\s\\)\s*$"
    r"|(?:SELECT|INSERT INTO|VALUES|UPDATE|SET|DELETE FROM|CREATE|ALTER|DROP|FROM|(?:LEFT |RIGHT |INNER |FULL |CROSS )?(?:OUTER )?JOIN|WHERE"
    r"|AND|OR|ON|GROUP BY|HAVING|ORDER BY|LIMIT|UNION|WITH)\s\S|(?:RUN|COPY|ADD|WORKDIR|ENV|EXPOSE|CMD|ENTRYPOINT|USER|ARG|LABEL|VOLUME)\s\S"
    r"|(?:class|module|def)\s[\w.:?!]+(?:\s*<\s*[\w:]+)?\s*$|attr_\w+ :|[\w']+(?:\s+[\w'()\[\]:,]+){0,6}\s+(?:::|<-|->|=)\s+\S|.*\s->\s\S"
    r"|[\w.$*&\[\]\"'@]+(?:\s*,\s*[\w.]+)*(?:\s*:\s*[\w.\[\], |]+)?\s*(?:[-+*/|&%]|:)?=(?!=)\s*\S|[\w.$]+\(.*\)\s*[;,{:]?\s*$|[\])}]+[;,:]?\s*$"
    r"|.*[;{}]\s*$)"
)
_CODE_SHARE, _CODE_LINES = 0.6, 3
# Least words of a sentence, and its least share of function words.
_SENTENCE_WORDS, _STOP_WORDS = 8, 0.3
# Without one of these, lines that end in such characters are a list or a letter.
_SURELY_CODE = re.compile(
    r"^\s*(?:def \w+\(|class \w+|import \w+|from [\w.]+ import |#include|function\b|const |let |var |public |private |func |fn |return\b.*[;)]?$"
    r"|(?:if|for|while|until) .*;\s*(?:then|do)\s*$|(?:fi|done|esac)\s*$|(?:SELECT|INSERT INTO|DELETE FROM|CREATE TABLE|FROM|WHERE) |(?:RUN|COPY|WORKDIR) "
    r"|def \w+[?!]?\s*$|[\w']+ :: \S|module [A-Z][\w.]* where"
    r"|(?:if|for|while)\b.*[:{]\s*$|[\w.]+ = .+|\w+\(.*\);?$|.*[;{]\s*$)",
    re.MULTILINE,
)
_COMMENT = re.compile(r"//|--\s|#\s|#$|\*|;;")
_HEREDOC = re.compile(r"(?<!<)<<[-~]?\s*['\"]?([A-Za-z_]\w*)['\"]?(?=\s|$|[);|>])")
# SQL statements begin with the first of these; without the limiting clauses they would have another meaning.
_SQL = re.compile(r"\s*(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH)(?!\w)")
_LIMITING = re.compile(
    r"\s*(?:FROM|SET|VALUES|(?:LEFT |RIGHT |INNER |FULL |CROSS )?(?:OUTER )?JOIN|WHERE|HAVING)(?!\w)"
)
_DEFINES = re.compile(r"\s*(?:CREATE|ALTER|DROP) TABLE(?!\w)")
_CLAUSE = re.compile(
    rf"{_SQL.pattern}|{_LIMITING.pattern}|\s*(?:GROUP BY|ORDER BY|LIMIT|UNION|CREATE TABLE|ALTER TABLE|DROP TABLE)(?!\w)"
)
_CONTINUES = re.compile(r"\s*(?:(?:elif|else|except|finally|catch|rescue|ensure|end|fi|done)\b|[\])}])")
_CLOSES = re.compile(r"\s*(?:(?:end|fi|done)\b|[\])}])")
_FLOW = re.compile(
    r"\s*(?:if|for|while|with|try|unless|until|switch|match|do|loop|foreach|else|elif|case|async (?:for|with))\b"
)
_TRIES = re.compile(r"\s*try\b")
# What opens a block that is not one of these.
_HEAD = re.compile(r"[:{]\s*(?:(?:#|//).*)?\Z|\A\s*(?:(?:export |local |async )*(?:def|class|module|function|sub))\b")
_QUOTED = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|(?:#|//).*")
# A literal with its first entry behind the brace; with nothing behind it a brace opens a block.
_BEGUN_LITERAL = re.compile(r"[=:(,\[]\s*\{[^{}]*\S[^{}]*$|\breturn\s*\{[^{}]*\S[^{}]*$")
# A bracket that stays open for longer belongs to prose or to a string.
_STATEMENT_LINES = 40
# So long may a text in triple quotes be.
_QUOTED_LINES = 400


def is_code(lines: list[str]) -> bool:
    """Whether lines are program code."""
    shown = [line for line in _outside_comments(_outside_docstrings(lines)) if line.strip()]
    found = [line for line in shown if _CODE_LINE.match(line) and not _is_sentence(line)]
    return (
        len(shown) >= _CODE_LINES
        and len(found) >= _CODE_SHARE * len(shown)
        and sum(bool(_SURELY_CODE.match(line)) for line in found) >= 2
    )


def _is_sentence(line: str) -> bool:
    """Whether a line is words and ends as code may: the items of a contract end with semicolons, too."""
    words = [word for word in map(bare_word, line.split()) if word.isalpha()]
    return len(words) >= _SENTENCE_WORDS and sum(map(STOP_WORDS.__contains__, words)) > _STOP_WORDS * len(words)


def _outside_docstrings(lines: list[str]) -> list[str]:
    found, quoted = [], False
    for line in lines:
        if not quoted:
            found.append(line)
        if line.count('"""') % 2:
            quoted = not quoted
    return found


def _outside_comments(lines: list[str]) -> list[str]:
    """The lines that are not only comments, because comments may be longer than the code."""
    found, within = [], False
    for line in lines:
        bare = line.strip()
        if within or bare.startswith("/*"):
            within = "*/" not in bare
        elif not _COMMENT.match(bare):
            found.append(line)
    return found


def _block_end(lines: list[str], at: int) -> int | None:
    """
    The line after a comment line, a `<<EOF` text, an SQL clause or a continued line that begins at `at`; `None` for
    other lines.
    """
    line, most = lines[at].strip(), min(len(lines), at + 3 * _STATEMENT_LINES)
    if line.startswith(("/*", "*")):  # line by line, ignoring brackets
        return at + 1
    if heredoc := _HEREDOC.search(line):
        return next((n + 1 for n in range(at + 1, most) if lines[n].strip() == heredoc[1]), None)
    above = lines[max(at - _STATEMENT_LINES, 0) : at + 1]
    # FROM may belong to a Dockerfile.
    if _CLAUSE.match(line) and any(_SQL.match(one) or _DEFINES.match(one) for one in above):
        if line.endswith(";"):
            return at + 1
        own = indent_of(lines[at])
        starts = lambda n: _CLAUSE.match(lines[n].lstrip()) and indent_of(lines[n]) <= own  # noqa: E731
        found = next((n for n in range(at + 1, most) if starts(n) or lines[n - 1].rstrip().endswith(";")), None)
        return found if found is not None else len(lines) if most == len(lines) else None
    if line.endswith("\\"):
        return next((n + 1 for n in range(at, most) if not lines[n].rstrip().endswith("\\")), None)
    return None


def indent_of(line: str) -> int:
    shown = line.expandtabs(4)
    return len(shown) - len(shown.lstrip())


def statement_sizes(lines: list[str], opening: str = "([", closing: str = ")]") -> list[int]:
    """Number of lines of each statement; brackets and triple quotes keep lines together."""
    sizes, at = [], 0
    while at < len(lines):
        end = _block_end(lines, at) if opening == "([" else None
        if end is not None:
            sizes.append(end - at)
            at = end
            continue
        depth, quotes, size, own, ends = 0, 0, 0, opening, closing
        for line in lines[at : at + _QUOTED_LINES]:
            if size >= _STATEMENT_LINES and not quotes % 2:
                break
            size += 1
            quotes += line.count('"""') + line.count("'''")
            if not quotes % 2:
                bare = _QUOTED.sub("", line)
                if size == 1 and opening == "([" and _BEGUN_LITERAL.search(bare):
                    own, ends = "([{", ")]}"
                depth += sum(map(bare.count, own)) - sum(map(bare.count, ends))
            if depth <= 0 and not quotes % 2:
                break
        sizes.append(size if depth <= 0 and not quotes % 2 else 1)
        at += sizes[-1]
    return sizes


def add_code(parts: Parts, lines: Iterable[str]) -> None:
    lines = list(lines)
    base, place, rows = len(parts), parts.edges[-1], []
    statements = []
    at = 0
    for size in statement_sizes(lines):
        statement = "".join(lines[at : at + size])
        at += size
        place += len(statement)
        parts.add(place, mark=not statement.strip())
        statements.append(statement)
    full = [number for number, statement in enumerate(statements) if statement.strip()]
    indents = {number: indent_of(statements[number]) for number in full}
    for after, number in pairwise(full[::-1]):  # a comment before an "else" stands in the block above it
        if _COMMENT.match(statements[number].strip()) and indents[number] == indent_of(statements[after]):
            indents[number] += _CONTINUES.match(statements[after]) is not None or indents[after] > indents[number]
    # Openers of the blocks that are open, outermost first; each with what goes on with it: "else", "}".
    open_: list[list[int]] = []
    for number in [*full, len(statements)]:
        indent = indents.get(number, -1)
        while open_ and indents[open_[-1][0]] >= indent:
            chain = open_.pop()
            if indents[chain[0]] == indent and number > chain[-1] + 1 and _CONTINUES.match(statements[number]):
                open_.append([*chain, number])
                break
            rows += _chained(statements, chain, number)
            for member in chain[1:] if number > chain[0] + 1 else ():
                parts.mark[base + member] = True
            if _FLOW.match(statements[chain[0]]) and any(n in indents for n in range(chain[0] + 1, number)):
                parts.mark[base + chain[0]] = True  # an "if" without its block says nothing
            rows += _filled(statements, chain, number)
        else:
            open_.append([number])
    _tie_comments(parts, statements, base)
    _tie_clauses(parts, statements, base)
    for one, after in pairwise(full):
        if statements[one].lstrip().startswith("@") and indents[one] == indents[after]:
            rows.append((one, after, after + 1))
            parts.mark[base + one] = True
        for blank in range(one + 1, after):
            if not indents[after]:  # outermost statements stay separate
                rows.append((blank, after, after + 1))
    parts.rows += [(a + base, b + base, c + base, base if not statements[a].strip() else -1) for a, b, c in rows]


def _tie_comments(parts: Parts, statements: list[str], base: int) -> None:
    """Keep the first and last line of a multi-line comment together with any line between them."""
    opened = None
    for number, statement in enumerate(statements):
        if opened is None and statement.lstrip().startswith("/*") and "*/" not in statement:
            opened = number
        elif opened is not None and "*/" in statement:
            for inside in range(opened, number + 1):  # code is kept before comments about it
                parts.severity[base + inside] = SIMILAR
                if not statements[inside].strip(" \t\r\n*"):
                    parts.mark[base + inside] = True
            for edge in (opened, number) if number > opened + 1 else ():
                parts.mark[base + edge] = True
                parts.rows.append((base + edge, base + opened + 1, base + number, -1))
            if number == opened + 1:
                parts.rows += [
                    (base + opened, base + number, base + number + 1, -1),
                    (base + number, base + opened, base + number, -1),
                ]
            opened = None


def _tie_clauses(parts: Parts, statements: list[str], base: int) -> None:
    """Keep the first clause of an SQL statement and its limiting clauses together with any other clause."""
    number = 0
    while number < len(statements):
        end = number + 1
        if _SQL.match(statements[number]):
            while (
                end < len(statements)
                and not statements[end - 1].rstrip().endswith(";")
                and _CLAUSE.match(statements[end])
            ):
                end += 1
            for at in range(number, end) if end > number + 1 else ():
                if at == number or _LIMITING.match(statements[at]):
                    parts.rows.append((base + at, base + number, base + end, -1))
        number = end


def _filled(statements: list[str], chain: list[int], end: int) -> list[tuple[int, int, int]]:
    """
    What keeps the blocks of an opener and of what goes on with it from being empty, where they are named or commented only: the
    statement of each that costs least. "def f():" without anything behind it does not parse, and "{}" would say that nothing is done.
    """
    rows, root = [], chain[0]
    for number, (opener, after) in enumerate(pairwise([*chain, end])):
        inside = [n for n in range(opener + 1, after) if statements[n].strip()]
        comments = [n for n in inside if _COMMENT.match(statements[n].strip())]
        done = [
            n
            for n in inside
            if n not in comments and not _FLOW.match(statements[n]) and not _CONTINUES.match(statements[n])
        ]
        if not done or not (number or _HEAD.search(statements[root]) or _FLOW.match(statements[root])):
            continue
        least = min(done, key=lambda n: len(statements[n].strip()))
        rows += [(least, n, n + 1) for n in comments]
        if number == 0:
            rows.append((least, root, root + 1))
            if after < end:
                rows.append((least, after + 1, end))
        if number == 1 and _TRIES.match(statements[root]):
            rows += [(one, root + 1, opener) for one in (opener, least)]
    return rows


def _chained(statements: list[str], chain: list[int], end: int) -> list[tuple[int, int, int]]:
    """
    Bonds of an opener and its continuations: they are kept with any line of their blocks, a closing bracket with all
    of them.
    """
    root = chain[0]
    rows = [(root, root + 1, end)] if end > root + 1 else []
    for member, after in zip(chain[1:], [*chain[2:], end]):
        if _CLOSES.match(statements[member]):
            rows += [(member, root + 1, end), (member, root, root + 1)]
        else:
            rows.append((member, member + 1, after))
    return rows
