"""
Find what a reader needs to understand the kept text correctly: negations, limits, and the marks that separate
sentences, lines and turns.

*Finders* return the spans of such words and marks, so that they can be protected by name. *Bonds* connect pieces: a
"not" is kept with the word that it negates, "before" with the date that it limits, a counted noun with its number, a
full stop with any kept part of its sentence, and a line break or the name of a speaker with any kept part of the line.
Bonds never make a budget impossible, because marks are kept only with other text.

Every pattern takes linear time. What it finds depends only on the surrounding line and on the language of the text.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from tokforget.compression.fences import find_code_fences
from tokforget.compression.pieces import Pieces
from tokforget.compression.wholes import TAG
from tokforget.compression.word_patterns import WordPattern, WordsOf, match_at
from tokforget.text_units import ENDS_SENTENCE, NEGATIONS, STOP_WORDS, TITLES, bare_word, split_sentences


# Negations that do not mean anything else in another language.
_NEGATIONS = WordPattern(
    # English; "No. 5" is a number
    r"not|no(?!\.\s?\d)|never|nor|none|nothing|nobody|nowhere|neither|cannot|without|unless|except|hardly|barely"
    "|scarcely|rarely|seldom"
    "|nicht|nichts|nie|niemals|niemand|niemandem|niemanden|nirgends|kein|keine|keinem|keinen|keiner|keines|ohne|außer|weder"
    "|keinesfalls|keineswegs|keinerlei|nirgendwo|kaum"
    "|nunca|jamás|nadie|ningún|ninguno|ninguna|tampoco"
    "|não|ninguém|nenhum|nenhuma|tampouco"
    "|nessun|nessuno|nessuna|niente|senza|neanche|nemmeno"
    "|niet|niets|nooit|niemand|geen|zonder|nergens"
    r"|не|нет|ни|нельзя|никогда|никто|никого|никому|ничего|ничто|никак|нигде|никакой|никакая|никакое|никакие|никаких|без|ні|немає"
    "|ніколи|ніхто|нічого|няма|никой|нищо|nigdy|nikt|żaden|żadna|żadne|nikdy|nikdo|není|nije|nisu|nema"
    "|inte|ikke|aldrig|aldri|ingen|inget|inga|utan|uden|uten|değil|yok|hayır|asla|δεν|μην|όχι|χωρίς|ποτέ|κανείς"
    "|tidak|bukan|jangan|belum|tanpa|không|chưa|đừng|chẳng"
    "|لا|لم|لن|ليس|ليست|ليسوا|بدون|دون|نیست|هیچ|نہیں|بغیر|לא|אין|בלי|नहीं|मत|बिना|না|নয়|নেই"
)
# Words that are negations only in a text of their language: "sin" and "non" are also English words, "Mai" is a month in
# German. Each entry has words by which the language is recognised, and its negations.
_NEGATIONS_OF_LANGUAGES = (
    (r"los|las|una|que|por|está|están|para|usted", "sin|ni|nada"),
    (r"il|che|della|delle|nella|dalla|sulla|degli|gli|è|sono|questo|questa|anche|più", "non|mai|nulla|né"),
    (r"que|uma|os|para|está|você|em", "sem|nem|nada"),
    (
        r"les|des|une|est|que|du|et|vous|nous|pour|par|avec|dans|été|cette|elle|aux|pas",
        "sans|ni|rien|jamais|pas|aucun|aucune|personne|guère",
    ),
    (r"het|een|niet", "noch"),
    (r"że|się|jest|są|przed|przez|oraz", "nie|bez|nic|ani|brak"),
    (r"že|jsou|při|před|nebo", "ne|bez|nic|ani"),
    (r"și|este|sunt|pentru|înainte|să|va", "nu|fără|nici|nimeni|nimic|niciodată"),
    (r"és|hogy|egy|az|van|volt|előtt", "nem|ne|nincs|nincsenek|sem|soha|senki|semmi"),
    (r"että|myös|ovat|ennen|mutta|hän|takaisin", "ei|en|emme|ette|eivät|älä|ilman"),
    (
        r"the|you|my|please|and|is",
        "dont|doesnt|didnt|isnt|arent|wasnt|werent|wont|cant|couldnt|wouldnt|shouldnt|havent|hasnt|hadnt|aint",
    ),
)
# Index of French in `_NEGATIONS_OF_LANGUAGES`.
_FRENCH = 3
# In Portuguese "no" means "in the" and is not a negation.
_PORTUGUESE = re.compile(r"não|(?<!\w)uma(?!\w)|(?:ção|ções)(?!\w)", re.IGNORECASE)
_CONTRACTED = re.compile(r"(?<![\w'’])[^\W\d_]+n['’]t(?!\w)", re.IGNORECASE)
_CONTRACTION = re.compile("n['’]t", re.IGNORECASE)
_FRENCH_NE = re.compile(r"(?<!\w)(?:ne\s|n['’])", re.IGNORECASE)
_LANGUAGES = [(WordPattern(signs), WordPattern(words)) for signs, words in _NEGATIONS_OF_LANGUAGES]
# "ne" and the word that completes it. "plus", "point" and "que" are negations only after "ne".
_NE = re.compile(
    r"(?<!\w)(?:(ne)\s+(?!\s)|(n['’]\w+)\s)(?:[\w'’-]+\s+){0,3}?(pas|plus|point|jamais|rien|aucune?|personne|guère|que|qu['’]\w+)(?!\w)",
    re.IGNORECASE,
)
# Negations in scripts without spaces, where no word boundary can be required: Chinese, Japanese, Thai, Lao, Khmer.
_SPACELESS_NEGATIONS = re.compile("[不没沒未無无勿]|禁止|(?<![特区性类个差分])别|ません|なかった|ない|ไม่|อย่า|ห้าม|ບໍ່|មិន")
# Korean negates a verb by a word before it or by an ending after it.
_KOREAN = re.compile(
    r"(?<!\w)[안못](?=\s)|(?<!\w)[가-힣]*(?:않|없|아니|마세요|마십시오|말아|말라|못하|못한|못했)[가-힣]*"
)
_HANGUL = re.compile("[가-힣]")
# Negations that follow the word that they negate.
_BEHIND_ITS_WORD = re.compile(r"değil|yok|[가-힣]{2,}", re.IGNORECASE)
# A negation before one of these negates the quantity: "not all passed" does not mean "not passed".
_QUANTIFIERS = frozenset(
    re.findall(
        r"\w+",
        """
        all every everyone everybody everything everywhere always both each any anyone anybody anything enough necessarily
        alle alles jeder jede jedes immer tous toutes tout toujours todos todas siempre sempre tutti tutte alle altijd все всегда
        """,
    )
)
# These words change the negation before them: "not only cheap" does not mean "not cheap".
_WITH_NEGATION = frozenset(
    re.findall(
        r"\w+",
        "only just merely simply longer yet exactly precisely quite entirely completely fully wholly totally nearly particularly especially very too so nur bloß lediglich mehr seulement solo sólo solamente soltanto più apenas somente alleen slechts meer только",
    )
)

# Limits: words that restrict a statement to some cases. They are kept with the next content word.
_LIMITS = WordPattern(
    "only|until|till|before|after|if|unless|except|without|at least|at most|up to|no more than|not more than"
    "|no less than|not less than|no fewer than|no later than|not later than|no earlier than|not earlier than|no sooner than"
    "|more than|less than|fewer than|greater than|lower than|higher than|other than|rather than|later than|earlier than"
    "|nur|bis|bis zum|vor|nach|falls|wenn|außer|erst|mindestens|höchstens|mehr als|weniger als"
    "|avant|avant le|après|jusqu'à|jusqu’à|jusqu'au|jusqu’au|sauf|si|seulement|moins de|plus de|au moins|au plus"
    "|antes de|antes del|después de|hasta|salvo|excepto|solo|sólo|más de|menos de|al menos|como máximo"
    "|antes do|depois de|até|exceto|apenas|mais de|pelo menos|no máximo"
    "|prima del|prima di|dopo|fino a|fino al|tranne|solo|soltanto|più di|meno di|almeno"
    "|alleen|tot|vóór|voor|na|tenzij|behalve|minstens|hoogstens|meer dan|minder dan"
    "|только|если|до|после|кроме|более|менее|не более|не менее|قبل|بعد|إلا|فقط|إذا"
    "|all but|everything but|everyone but|anything but|nothing but|none but|nobody but|no one but|anyone but|apart from|as many as|as few as|as little as|as late as"
    "|a maximum of|a minimum of|not exceeding|in excess of|short of|once|provided|providing|provided that|as long as|so long as"
    "|as soon as|in case|even if|only if|whether"
    "|lediglich|spätestens|frühestens|sofern|sobald|solange|ausgenommen|vorausgesetzt|maximal|minimal|statt|anstatt"
    "|uniquement|hormis|tant que|dès que|à condition que|à moins que|lorsque|au minimum|au maximum"
    "|solamente|únicamente|a menos que|siempre que|a partir de|como mínimo|somente|desde que|solamente|purché|a meno che|al massimo"
    "|hooguit|maximaal|minimaal|uiterlijk|slechts|indien|zodra|zolang|mits"
    "|endast|kun|innan|før|efter|tills|indtil|hvis|högst|højst|minst|mer än|mindre än|mere end|mindre end|mer enn|mindre enn"
    "|tylko|jeśli|jeżeli|dopóki|przed|najwyżej|mniej niż|więcej niż|co najmniej|oprócz|pouze|pokud|před|kromě|méně než|více než"
    "|hanya|sebelum|setelah|jika|kecuali|kurang dari|lebih dari|chỉ|trước|nếu|trừ"
)
# Limits that select some of many things. They are kept with any word of the phrase that follows them, because "only
# with a valid ticket" must not become "a ticket".
_PICKS = frozenset(
    re.findall(
        r"\w+", "only nur solo sólo seulement solamente alleen только lediglich except außer sauf salvo excepto"
    )
)
# Limits that introduce a clause. They are kept with any word of it, because it would hold in every case without them.
_CONDITIONS = WordPattern(
    "if|only if|even if|unless|until|till|once|provided|providing|provided that|as long as|so long as|as soon as|in case|whether"
    "|falls|wenn|sofern|sobald|solange|tant que|dès que|à condition que|à moins que|lorsque|si|a menos que|siempre que|desde que"
    "|purché|a meno che|tenzij|indien|zodra|zolang|mits|если|إذا|jeśli|jeżeli|pokud|hvis|jika|nếu"
)
# Limits that are also kept with any word of the clause before them, because without them that clause would hold in
# every case: "the rule applies only if the tenant has agreed".
_PROVISOS = WordPattern(
    "only if|only when|only where|only after|only with|only on condition|unless|nur wenn|nur falls|es sei denn|seulement si|uniquement si"
    "|solo si|sólo si|solo se|somente se|apenas se|alleen als|à moins que|a menos que|a meno che|tenzij|только если|только когда"
)
# Content words that reverse or weaken what follows them: "failed to pay", "almost won", "little evidence".
_REVERSERS = [
    WordPattern(
        "forgot|forget|forgets|neglected|neglects|neglect|failed|fails|fail|failing|refused|refuses|refuse|declined|declines|ceased|ceases|unable|unlikely|reluctant|limited|restricted"
        "|confined|supposed",
        behind=r"(?=\s+to(?!\w))",
    ),
    WordPattern(
        "yet to|far from|free from|free of|exempt from|excluded from|instead of|lack of|absence of|devoid of|incapable of|avoid|avoids|avoided|avoiding|stopped|almost|nearly"
        "|allegedly|reportedly|supposedly|purportedly|might|would have|could have|might have|should have"
        "|beinahe|fast|angeblich|presque|casi|quase|quasi|bijna|почти"
    ),
    WordPattern("few|little", before=r"(?<!\ba )(?<!\bA )"),
]
# Words that negate the whole clause that follows them ("banned smoking in halls"), or in the passive the word before
# them ("smoking is banned").
_REFUSALS = WordPattern(
    "denied|denies|deny|denying|refused|refuses|refuse|refusing|rejected|rejects|rejecting|doubt|doubts|doubted|forbid|forbids|forbade"
    "|forbidden|prohibited|prohibits|banned|bans|disallowed|disallows"
    "|weigert|weigerte|weigern|weigerten|verweigert|verweigerte|verbietet|verbot|verboten|untersagt|abgelehnt"
    "|refusent|refusé|interdit|interdite|interdits|niega|niegan|negó|negaron|prohíbe|prohibido|prohibida|rifiuta|rifiutato|vietato|vietata"
    "|recusa|recusou|proibido|proibida|verboden|verbiedt|отказался|отказалась|отказались|отказывается|запрещено|запрещена|запрещает"
)
# Verbs that are never kept without the word they lead to: "became independent from Durham" does not mean "became Durham".
_BECOMES = WordPattern("become|becomes|became|becoming|remain|remains|remained|remaining")
# Auxiliary verbs of the passive.
_PASSIVE = frozenset(
    re.findall(
        r"\w+",
        """
        is are was were be been being get gets got ist sind war waren wird werden wurde wurden est sont été es son está fue fueron
        è sono stato stata foi é são werd wordt был была было были
        """,
    )
)
# Without the first half of a comparison, its second half would be misread.
_COMPARED = re.compile(r"(?<![\w'’-])(?:as\s+[\w-]+\s+as|[\w-]+\s+than)(?!\w)", re.IGNORECASE)
# Prepositions and the like that change the meaning of the number after them: "fell to 20" does not mean "fell 20".
_BEFORE_NUMBER = WordPattern(
    "exceeds|exceed|exceeding|exceeded|to|from|by|under|over|above|below|beyond|within|since|between|per|every|minus|plus|um|auf|von|unter|über|seit|ab|zu|gegen|"
    "à|dès|depuis|sous|desde|hacia|bajo|da|dal|sotto|met|naar|sinds|onder|от|с|на|свыше",
    behind=r"(?=[ \u00a0\u202f][-+−]?(?:[$€£¥₹]\s?)?\d)",
)
# A range needs both ends: "from 9 to 5" does not mean "to 5". Words such as "and" and "a" join the ends of a range only
# if "between" or "from" comes before it. The pattern has a bounded length, because it is tried at every number of a run
# such as 1.1.1.1 and would otherwise read to the end of the run each time.
_RANGE = re.compile(
    r"\d[\w.,:/%°-]{0,30}(?:\s[^\W\d_]{1,9}\.?)?\s+(?:(to|till|until|through|bis|à|hasta|até|tot|til|до)|(a|al|alle|ao|do|по)"
    r"|(and|und|et|y|e|en|och|og|i|и))\s+(?:[$€£¥₹]\s?)?\d",
    re.IGNORECASE,
)
# The word between two names is kept if both are: "from Thursday to Friday" is not "Thursday Friday".
_TO_NAME = re.compile(
    r"(?<=\w) (?:to|till|until|through|bis|nach|à|hasta|até|naar|tot|til|do|до)(?= [^\W\d_a-zß-öø-ÿа-я]\w)"
)
_FROM = frozenset(re.findall(r"\w+", "from von vom de du desde da dal dalle van från fra od с от"))
_BETWEEN = frozenset(
    re.findall(r"\w+", "between zwischen entre tra fra tussen mellan mellem mellom między mezi между")
)
_NUMBER_WORDS = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|thousand|one|half|most|some|many|few"
# "J. R. Smith" is not "R Smith": initials are kept together, and with them the name that follows.
_INITIALS = re.compile(r"(?<![\w.])(?:[^\W\d_a-zà-öø-ÿа-я]\.[ \u00a0]?){1,4}(?=[^\W\d_a-zà-öø-ÿа-я][^\W\d_])")
# An exception: "all staff but the cook" excludes the cook.
_BUT = re.compile(
    r"(?<!\w)(?:all|every|any|none|no)\s+(?:of\s+)?(?:the\s+)?[\w-]+\s+(but)(?=\s+(?:the|a|an|one|two|his|her|my|your|our|their)\s)",
    re.IGNORECASE,
)
# A share of things: "half of the votes" does not mean "the votes".
_SHARE = re.compile(
    rf"(?<![\w.,:/-])(?:(?:{_NUMBER_WORDS})|\d+(?:[.,]\d+)*(?:\s?%|\spercent|\sper\scent)?)\sof\s"
    r"(?:the|these|those|our|its|my|his|her|their|your|all)(?=\s[^\W\d_]{3})",
    re.IGNORECASE,
)
# Function words, mostly of other languages. A negation skips them and applies to the next content word.
_FOREIGN = frozenset(
    re.findall(
        r"\w+",
        """
    der die das den dem des ein eine einen einem von vom zu zum zur im in am an ist war wird wurde werden worden sich le la les un
    une de du à au aux en est sont été el los las una del al ha han lo gli il di da do dos das em no na foi è sono stato het een van
    te op is zijn быть был была в на с yet even really longer zal werd har är er blir ble va vor sera seront será serán são ont avait
    était hanno będzie akan
    """,
    )
)
# Function words that say nothing without the content word after them.
_LEADING = (
    _FOREIGN
    | frozenset(
        re.findall(
            r"\w+",
            """
    a an the of in on at by for from to with into about between through during above below under over against as and or but is are
    was were be been being has have had do does did will would can could should my your his her its our their this these those such
    than so und oder aber et ou mais y o pero e ed ma en of maar mit von für auf aus bei nach über unter avec pour par sur dans con
    por para sobre per tra voor met и или но в на с по для из к у
    """,
        )
    )
    | frozenset(map(str.lower, TITLES))
)
_SKIPPED = STOP_WORDS | _FOREIGN | _LEADING
# After a word of `_GOES_ON` at the end of a line, the clause continues if the next line begins with a word in lower
# case, with a number of things or with an amount of money.
_LOWER = re.compile(r"[ \t>]*(?:[a-zà-öø-ÿа-я]|[$€£¥₹]?\d[\d.,]*\s[a-zà-öø-ÿа-я]{2}|[$€£¥₹]\d)")
_GOES_ON = (
    _SKIPPED | NEGATIONS | frozenset(re.findall(r"\w+", "than only nicht kein keine ohne nur pas sans niet geen"))
)
# Larger than the difference of any two scores.
_FAR = 1e6
# The content word of a negation or limit, and the end of its clause, are searched within this number of pieces.
_REACH = 6
# Fewest words of a sentence of which a single kept word is a remnant; see [`Bonds.remnants`].
_SHORTEST_SENTENCE = 4
# The edges of a clause are searched within this number of pieces on both sides.
_CLAUSE_REACH = 40
_CLAUSE_MARK = re.compile(r"\s*(?:[,;:，；：、]|[-–—]{1,2})\s*")
_CLAUSE_END = re.compile(r"[.!?;:…。！？；：؟۔।]")

# -- marks -------------------------------------------------------------------------------------------------------------
_CLOSING = "\"'”’»)\\]*_"
_SENTENCE_END = re.compile(
    # A sentence that continues in lower case has not ended.
    rf"(?<![.!?…])(?:\.(?!\.){ENDS_SENTENCE}|\.{{2,3}}|[!?…]+|[؟۔।])[{_CLOSING}]*(?=\s+[^a-zà-öø-ÿа-я\s]|\s*\Z|\s*\n)"
    r"|[。！？]+[」』）”]*"
    # An answer of one word is a sentence, even if the next one begins in lower case.
    r"|(?:(?<=[:?!.\n]\s[Nn]o)|(?<=[:?!.\n]\s[Yy]es)|(?<=[:?!.\n]\s[Nn]ope)|(?<=[:?!.\n]\s[Yy]eah))\.(?=\s+[a-z])",
    re.MULTILINE,
)
_SENTENCE_MARK = re.compile("[.!?…؟۔।。！？]")
_BREAK = re.compile(r"[\n\r\u2028\u2029]\s*")
_ROLE_NAMES = (
    "system|user|assistant|human|ai|bot|agent|customer|client|caller|operator|support|developer|tool|function|model|chatgpt|claude|"
    "speaker|interviewer|interviewee|moderator|teacher|student|doctor|patient|question|answer|q|a|me|you|"
    "nutzer|benutzer|kunde|kundin|assistent|utilisateur|usuario|usuária|usuário|cliente|asistente|assistente|utente|gebruiker"
)
# The time of a turn, as chats and transcripts write it before the name.
_WHEN = (
    r"(?:[\[(]?(?:\d{1,4}[/.-]\d{1,2}[/.-]\d{2,4},?[ \t])?\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?:[ \u202f]?[AaPp][Mm])?[\])]?"
    r"[ \t]?(?:[-–|][ \t])?)"
)
_ROLE = re.compile(
    rf"^[ \t]*{_WHEN}(?:<[@+~&%]?[\w\[\]`^|-]{{1,30}}>(?=\s|$)|\*[ \t](?=\w)|(?:[^\W\d_][\w.'’-]{{0,20}})(?:[ \t][^\W\d_][\w.'’-]{{0,20}}){{0,2}}[:：](?=\s|$))"
    r"|^<(?!/)[@+~&%]?[A-Za-z][\w\[\]`^|-]{1,30}>(?=[ \t]+\S)(?!.*</)"
    rf"|^[ \t]*(?:<\|[\w ]{{1,20}}\|>(?:(?:{_ROLE_NAMES})$)?|\[/?INST\]|"
    rf"[*_#>\[( \t]{{0,6}}(?:(?i:{_ROLE_NAMES})(?:[ \t]\d{{1,3}})?|(?:[^\W\d_a-zà-öø-ÿа-я][\w.'’-]{{0,20}})(?:[ \t][^\W\d_a-zà-öø-ÿа-я][\w.'’-]{{0,20}}){{0,2}})"
    r"(?:[ \t]?\([^()\n]{1,30}\))?[\])*_]{0,3}[ \t]?[:：](?!//)[*_]{0,2}(?=\s|$))",
    re.MULTILINE,
)
# Speakers who ask: if one of them speaks last, the last turn is what is to be answered.
_ASKS = re.compile(
    r"\W*(?i:user|human|customer|client|caller|patient|student|interviewer|question|q|me|nutzer|benutzer|kunde|kundin|utilisateur|usuario"
    r"|usuária|usuário|cliente|utente|gebruiker)\W*"
)
# Fewest turns of a conversation, and the largest share of its pieces that the last turn may have to be kept first: half
# for a few sentences, because they are much of a short conversation.
_LEAST_TURNS, _LAST_SHARE, _FEW_WORDS, _SHARE_OF_FEW = 3, 0.25, 40, 0.5
# Marks at the beginning of items, headings, quoted lines and retrieved passages: bullets, numbers, "#", ">", "[1]".
_ITEM = re.compile(
    r"^[ \t]*(?:(?:[-*+•‣–]|#{1,6}|>|\(?(?:\d{1,3}|[a-zA-Z])[.)]|\[\d{1,3}\][:.]?)(?=[ \t]))", re.MULTILINE
)
# A number that counts things is followed by a word for them. Years are excluded, because they count nothing.
_COUNTED = r"(?= [^\W\d_]{3})"
_DIGITS = re.compile(r"(?<![\w.,:/-])(?!(?:19|20)\d\d )\d+(?:[.,]\d+)*" + _COUNTED)
_DIGIT = re.compile(r"\d+")
_COUNT = WordPattern(
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|thousand|zwei|drei|vier|fünf|sechs|"
    "sieben|acht|neun|zehn|zwölf|zwanzig|hundert|tausend|deux|trois|quatre|cinq|sept|huit|neuf|dix|douze|vingt|dos|tres|cuatro|cinco|"
    "seis|siete|ocho|nueve|diez|due|tre|quattro|cinque|sei|sette|otto|nove|dieci|twee|drie|vijf|zes|zeven|negen|tien",
    before=r"(?<![\w.,:/-])",
    behind=_COUNTED,
)
# Brackets and quotation marks, and for each closing sign the signs that may open its pair.
_PAIRED = re.compile('[()\\[\\]{}“”„«»‹›「」『』（）【】《》"]')
_CLOSED_BY = {
    ")": "(",
    "]": "[",
    "}": "{",
    "”": "“„",
    "»": "«",
    "›": "‹",
    "」": "「",
    "』": "『",
    "）": "（",
    "】": "【",
    "》": "《",
}
# Tags say nothing by themselves. Tags of lists, tables and headings, and tags that are not HTML, are kept with any kept
# part of their content. The two tags of a `_LOOSE` element are kept with each other, and `_VOID` elements have no
# closing tag.
_TAGS = re.compile(rf"\s*(?:{TAG.pattern})+\s*")
_MARKUP = re.compile(rf"\s*(?:{TAG.pattern}|<!--(?:(?!-->).){{0,2000}}-->)+\s*", re.DOTALL)
_VOID = frozenset(re.findall(r"\w+", "area base br col embed hr img input link meta param source track wbr"))
_LOOSE = frozenset(
    re.findall(
        r"\w+",
        """
        html head body div span section article nav main header footer aside form label button select option a b i u s em strong small
        big sup sub code kbd samp var cite q abbr mark font center p figure figcaption picture video audio iframe noscript template
        """,
    )
)
# Emphasis says little, and one of its two signs alone says nothing. To exclude pointers and products in code, the
# opening sign must not follow a word, the closing sign must not precede one, and both must be on one line.
_EMPHASIS = re.compile(r"(?<![\w*\\)\]])(\*{1,3})(?=[^\s*])[^*\n]*?(?<=[^\s*(&\[])(\1)(?![\w*(\[&>])")
_CODE_SPAN = re.compile(r"(?<![\w`\\])(`)(?=[^`\s])[^`\n]*(?<=[^`\s])(`)(?![\w`])")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?:(?!---)[^\n]*\n){1,80}---(?=[ \t]*(?:\n|\Z))")
# Rows of Markdown tables, and the line under the header of a table.
_ROW = re.compile(r"^[^|\n]*\|[^|\n]*\|.*$", re.MULTILINE)
_RULE = re.compile(r"[ \t|:+-]*-[ \t|:+-]*\r?")
# Lines that show that a block is not wrapped prose: items, tables, code and indented lines; and the smallest and
# largest width at which prose is wrapped.
_UNWRAPPED = re.compile(r"[ \t]*(?:[-*+•‣>#|\[<]|\(?\d|[A-Za-z][.)]\s)|.*(?: {3}|\t|[|{};\\]\s*$)|\s+\S")
_WRAP_WIDTHS = (40, 140)


def find_negations(text: str) -> Iterator[tuple[int, int]]:
    """Spans of negations in more than thirty languages."""
    yield from _find_negations(WordsOf(text))


def _find_negations(words: WordsOf) -> Iterator[tuple[int, int]]:
    text = words.text
    found = [match.span() for match in _NEGATIONS.finditer(words)]
    if _CONTRACTION.search(text):
        # If another match begins at the same place as a contraction, the contraction replaces it.
        contracted = dict(match.span() for match in _CONTRACTED.finditer(text))
        found = sorted((dict(found) | contracted).items())
    portuguese = (
        _PORTUGUESE.search(text)
        if words.lower is None or any(sign in words.lower for sign in ("ã", "õ", "uma"))
        else None
    )
    for start, end in found:
        if not portuguese or text[start:end].lower() != "no":
            yield start, end
    for number, (signs, others) in enumerate(_LANGUAGES):
        if signs.is_in(words):
            yield from (match.span() for match in others.finditer(words))
            if number == _FRENCH:
                for match in _NE.finditer(text):
                    yield match.span(1 if match[1] else 2)
                    if match[3].lower() in ("plus", "point", "que"):
                        yield match.span(3)
    if not text.isascii():
        yield from (match.span() for match in _SPACELESS_NEGATIONS.finditer(text))
        if _HANGUL.search(text):
            yield from (match.span() for match in _KOREAN.finditer(text))


def find_sentence_ends(text: str) -> Iterator[tuple[int, int]]:
    """Spans of the marks that end a sentence, with the closing quotation marks and brackets after them."""
    return (match.span() for match in match_at(_SENTENCE_END, _SENTENCE_MARK, text))


def find_line_breaks(text: str) -> Iterator[tuple[int, int]]:
    """
    Spans of line breaks with the white space around them; in prose that is wrapped at a width, only of paragraph ends.
    """
    return _breaks(text)


def find_roles(text: str) -> Iterator[tuple[int, int]]:
    """Spans of the names of speakers at the beginning of a line: "user:", "**Anna Petersen:**", "<|assistant|>"."""
    return (match.span() for match in _ROLE.finditer(text))


def _breaks(text: str) -> Iterator[tuple[int, int]]:
    found = []
    for match in _BREAK.finditer(text):
        start, end = match.span()
        # The pattern includes the white space after a break, but not the white space before it.
        while start and text[start - 1].isspace():
            start -= 1
        found.append((start, end))
    # A block is a run of lines without an empty line in it. In a wrapped block only the last line ends a paragraph.
    edges = [0, *(b for _, b in found), len(text)]
    lines = [text[a:b] for a, b in zip(edges, [*(a for a, _ in found), len(text)])]
    start = 0
    while start < len(lines):
        end = start + 1
        while end < len(lines) and text.count("\n", *found[end - 1]) == 1:
            end += 1
        wrapped = _is_wrapped(lines[start:end])
        for index in range(start, min(end, len(found))):
            if index == end - 1 or not wrapped:
                yield found[index]
        start = end


def _is_wrapped(lines: list[str]) -> bool:
    """Whether a block is prose that is wrapped at a width: no line has room for the first word of the next line."""
    if len(lines) < 2:
        return False
    width = max(map(len, lines))
    if not _WRAP_WIDTHS[0] <= width <= _WRAP_WIDTHS[1] or any(_UNWRAPPED.match(line) for line in lines):
        return False
    if any(_ROLE.match(line) for line in lines[1:]):  # each line is a turn of a conversation
        return False
    firsts = [line.split(maxsplit=1)[0] if line.split() else "" for line in lines]
    return all(len(line) + 1 + len(after) > width for line, after in zip(lines, firsts[1:]) if after)


# -- bonds -------------------------------------------------------------------------------------------------------------
@dataclass
class Bonds:
    """
    Bonds between pieces. The bound piece of a bond is kept as soon as one piece of its range is kept.

    Args:
        pieces (`np.ndarray` of shape `(num_bonds,)`): The bound piece of each bond.
        first (`np.ndarray` of shape `(num_bonds,)`), last (`np.ndarray` of shape `(num_bonds,)`): The range of each
            bond; `last` is not included.
        begin (`np.ndarray` of shape `(num_bonds,)`): If it is not -1, the bond also requires that something from here
            to the bound piece is kept. For example, a line break needs text on both of its sides.
        marks (`np.ndarray` of shape `(num_pieces,)`): Pieces that say nothing by themselves; bool. They are kept only
            with other pieces, and no bond is triggered by them.
        first_of_all (`np.ndarray` of shape `(num_pieces,)`): Pieces that are kept before all others, as far as they
            fit; bool.
        leads_to (`np.ndarray` of shape `(num_pieces,)`): The piece before which each piece is never kept: for "the" the
            word after it, for a comma the word before it, for most pieces the piece itself.
        clause_marks (`np.ndarray` of shape `(num_pieces,)`, *optional*): Commas, semicolons, colons and dashes that are
            pieces of their own; bool.
        stops (`np.ndarray` of shape `(num_pieces,)`, *optional*): Ends of sentences; bool.
        pairs (`np.ndarray` of shape `(num_pairs, 2)`, *optional*): Opening brackets and quotation marks, and the
            closing ones of the same pairs.
        denies (`np.ndarray` of shape `(num_pieces,)`, *optional*): Negations; bool.
        words (`np.ndarray` of shape `(num_pieces,)`, *optional*): Pieces with a letter or a digit; bool.
        sentences (`np.ndarray` of shape `(num_pieces,)`, *optional*): The sentence in which each piece ends, by number.
    """

    pieces: np.ndarray
    first: np.ndarray
    last: np.ndarray
    begin: np.ndarray
    marks: np.ndarray
    first_of_all: np.ndarray
    leads_to: np.ndarray
    clause_marks: np.ndarray | None = None
    stops: np.ndarray | None = None
    pairs: np.ndarray | None = None
    denies: np.ndarray | None = None
    words: np.ndarray | None = None
    sentences: np.ndarray | None = None

    def __post_init__(self):
        if self.words is None or self.sentences is None:
            self.words, self.sentences = np.zeros(len(self.marks), dtype=bool), np.zeros(len(self.marks), np.int64)
        if self.denies is None:
            self.denies = np.zeros(len(self.marks), dtype=bool)
        if self.pairs is None:
            self.pairs = np.zeros((0, 2), dtype=np.int64)
        if self.clause_marks is None or self.stops is None:
            self.clause_marks, self.stops = np.zeros((2, len(self.marks)), dtype=bool)

    def dangling(self, keep: np.ndarray) -> np.ndarray:
        """
        Kept signs that have lost their function; bool. These are commas and the like whose word is dropped or which are
        now directly before the end of a sentence, and brackets and quotation marks with nothing left between them.
        """
        kept = keep.nonzero()[0]
        found = keep & self.clause_marks & ~keep[self.leads_to]
        one, two = kept[:-1], kept[1:]
        found[one[self.clause_marks[one] & self.stops[two] & (two - one > 1)]] = True
        if len(self.pairs):
            opened, closed = self.pairs.T
            total = _sums(keep & ~self.stops)  # "(.)" counts as empty
            empty = keep[opened] & (total[closed] == total[opened + 1]) & (closed > opened + 1) & ~self.marks[closed]
            found[self.pairs[empty]] = True
        return found & keep

    def rank(self, ranks: np.ndarray) -> np.ndarray:
        """Adapt ranks `(num_pieces,)` to the bonds; the lowest are kept first."""
        ranks = self.defer_leading(ranks)
        return np.where(self.first_of_all, ranks - _FAR, ranks)

    def defer_leading(self, ranks: np.ndarray) -> np.ndarray:
        """Raise ranks `(num_pieces,)` so that no piece precedes the one that it leads to, except if it must stay."""
        ahead = ranks[self.leads_to]
        # A piece with an infinite rank is kept through bonds at most, so other pieces do not wait for it.
        leads = (self.leads_to != np.arange(len(ranks))) & (ranks != -np.inf) & (ahead != np.inf)
        # Slightly more, because equal ranks would go to the earlier piece.
        return np.where(leads, np.maximum(ranks, ahead + 1e-6), ranks)

    def complete(self, keep: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """
        Add the bound pieces to a keep mask, as far as they are `allowed`; both `(num_pieces,)`, bool. The result is
        monotone: a larger mask never gives a smaller result.
        """
        if not len(self.pieces):
            return keep
        said, free, since = ~self.marks, self.begin < 0, np.maximum(self.begin, 0)
        while True:
            total = _sums(keep & said)
            called = total[self.last] > total[self.first]
            called &= free | (total[self.pieces] > total[since])
            new = keep.copy()
            new[self.pieces[called]] = True
            new &= allowed | keep
            if (new == keep).all():
                return keep
            keep = new

    def remnants(self, keep: np.ndarray) -> np.ndarray:
        """
        Kept words that are the only one of a sentence with at least four words; bool. Such a word says little, but
        takes two or three tokens with the end of its sentence and line.
        """
        counted = self.words & ~self.marks
        words, left = (np.bincount(self.sentences, one) for one in (counted, counted & keep))
        return ((left == 1) & (words >= _SHORTEST_SENTENCE))[self.sentences] & counted & keep

    def misleading(self) -> np.ndarray:
        """Pieces that would be misread without their bound pieces, such as words of a clause without "not"; bool."""
        found = np.zeros(len(self.marks), dtype=bool)
        found[self.first[(self.last - self.first == 1) & ~self.marks[self.pieces]]] = True
        denied = self.denies[self.pieces]
        steps = np.zeros(len(self.marks) + 1, dtype=np.int64)
        np.add.at(steps, self.first[denied], 1)
        np.add.at(steps, self.last[denied], -1)
        return found | (np.cumsum(steps)[:-1] > 0)

    @classmethod
    def none(cls, num_pieces: int) -> "Bonds":
        """Pieces without any bonds."""
        nothing, no_piece = np.zeros(num_pieces, dtype=bool), np.zeros(0, dtype=np.int64)
        return cls(no_piece, no_piece, no_piece, no_piece, nothing, nothing.copy(), np.arange(num_pieces))

    @classmethod
    def joined(cls, parts: "list[Bonds]") -> "Bonds":
        """Join the bonds of several texts, whose pieces are joined in the same order."""
        starts = np.cumsum([0, *(len(part.marks) for part in parts)])
        moved = [
            (p.pieces + s, p.first + s, p.last + s, np.where(p.begin < 0, -1, p.begin + s))
            for p, s in zip(parts, starts)
        ]
        return cls(
            *(np.concatenate(column) for column in zip(*moved)),
            np.concatenate([part.marks for part in parts]),
            np.concatenate([part.first_of_all for part in parts]),
            np.concatenate([part.leads_to + start for part, start in zip(parts, starts)]),
            np.concatenate([part.clause_marks for part in parts]),
            np.concatenate([part.stops for part in parts]),
            np.concatenate([part.pairs + start for part, start in zip(parts, starts)]),
            np.concatenate([part.denies for part in parts]),
            np.concatenate([part.words for part in parts]),
            np.concatenate([part.sentences + start for part, start in zip(parts, starts)]),
        )

    def __getitem__(self, part: slice) -> "Bonds":
        """The bonds of consecutive pieces; pieces are counted from the first of these."""
        inside = (self.pieces >= part.start) & (self.pieces < part.stop)
        first, last = (np.clip(edge[inside], part.start, part.stop) - part.start for edge in (self.first, self.last))
        begin = np.where(self.begin[inside] < 0, -1, np.maximum(self.begin[inside] - part.start, 0))
        return Bonds(
            self.pieces[inside] - part.start,
            first,
            last,
            begin,
            self.marks[part].copy(),
            self.first_of_all[part],
            np.arange(part.stop - part.start),  # the ranks are adapted already
            self.clause_marks[part],
            self.stops[part],
            self.pairs[((self.pairs >= part.start) & (self.pairs < part.stop)).all(1)] - part.start,
            self.denies[part],
            self.words[part],
            self.sentences[part] - self.sentences[part].min(initial=0),
        )


def _sums(found: np.ndarray) -> np.ndarray:
    """The number of found places before each place, then their total `(num_places + 1,)`."""
    total = np.zeros(len(found) + 1, dtype=np.int64)
    found.cumsum(out=total[1:])
    return total


class _Traits(NamedTuple):
    """
    Properties of a piece that its string shows. `bare` is its word in lower case, without the punctuation around it; it
    is empty for tags and for pieces without a letter or digit.
    """

    bare: str
    ends_sentence: bool
    ends_clause: bool
    breaks_line: bool
    is_apart: bool
    is_leading: bool
    is_skipped: bool
    is_clause_mark: bool


@lru_cache(maxsize=2**16)
def _traits_of(word: str) -> _Traits:
    bare = bare_word(word) if any(map(str.isalnum, word)) and not _TAGS.fullmatch(word) else ""
    breaks_line = "\n" in word
    ends_clause = breaks_line or bool(_CLAUSE_END.search(word))
    return _Traits(
        bare, breaks_line or bool(_SENTENCE_MARK.search(word)), ends_clause, breaks_line, word[:1].isspace(), bare in _LEADING,
        bare in _SKIPPED, _CLAUSE_MARK.fullmatch(word) is not None,
    )  # fmt: skip


def _closes(word: str) -> bool:
    """Whether a piece without a word closes a bracket or a quotation; no search for a content word passes it."""
    return any(sign in _CLOSED_BY for sign in word) or ('"' in word and not word[:1].isspace())


@dataclass
class _Builder:
    """
    Collects the bonds of a text.

    Args:
        text (`str`), pieces (`Pieces`): The text and its pieces.
        rows (`list[tuple[int, int, int, int]]`): The bonds so far: bound piece, first, last and begin, as in [`Bonds`].
    """

    text: str
    pieces: Pieces
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)

    def __post_init__(self):
        self.chars = self.pieces.chars.tolist()
        self.words = [self.text[a:b] for a, b in pairwise(self.chars)]
        self.traits = list(map(_traits_of, self.words))
        for index in [at for at, word in enumerate(self.traits) if word.breaks_line]:
            if self.is_break_within_clause(index):
                self.traits[index] = self.traits[index]._replace(ends_sentence=False, ends_clause=False)
        self.marks = np.zeros(len(self.pieces), dtype=bool)
        self.first_of_all = np.zeros(len(self.pieces), dtype=bool)
        self.denies = np.zeros(len(self.pieces), dtype=bool)
        self.leads_to = np.arange(len(self.pieces))
        self.stops = np.zeros(len(self.pieces), dtype=bool)
        self.pairs: list[tuple[int, int]] = []
        self.stands_at: dict[int, int] = {}

    def touched(self, start: int, end: int) -> tuple[int, int]:
        """The range of the pieces that share a character with a span; its end is not included."""
        return bisect_right(self.chars, start) - 1, bisect_left(self.chars, end)

    def touched_blanks(self, start: int, end: int) -> tuple[int, int]:
        """As `touched`, but without a word at the end that only shares the last white space of the span."""
        first, last = self.touched(start, end)
        while last > first and self.word(last - 1).strip():
            last -= 1
        return first, last

    def word(self, index: int) -> str:
        return self.words[index]

    def is_at(self, index: int, words: frozenset[str], unless: str = "") -> bool:
        """Whether the piece at `index` is one of some words, and the next piece is not the word `unless`."""
        bare = [word.bare for word in self.traits[index : index + 2]]
        return bool(bare) and bare[0] in words and bare[1:] != [unless]

    def is_break_within_clause(self, index: int) -> bool:
        """
        Whether a line break is inside a clause: the word before it expects another one, and the next line begins in
        lower case or with a number.
        """
        if not 0 < index < len(self.pieces) - 1 or self.words[index].count("\n") != 1 or self.traits[index].bare:
            return False
        start = self.text.index("\n", self.chars[index]) + 1
        return (
            self.traits[index - 1].bare in _GOES_ON
            and self.words[index - 1][-1:].isalnum()
            and bool(_LOWER.match(self.text, start))
            and not _ROLE.match(self.text, start)
            and not _ITEM.match(self.text, start)
        )

    def add_marks(self, start: int, end: int, first: int, last: int, begin: int = -1) -> None:
        """
        Make the pieces of a span marks that are bound to the range from `first` to `last`. Pieces that also contain
        other text are skipped.
        """
        for index in range(*self.touched(start, end)):
            a, b = self.chars[index], self.chars[index + 1]
            outside = self.text[a : max(a, start)] + self.text[min(b, end) : b]
            if not outside.strip():
                self.marks[index] = True
                self.rows.append((index, first, last, begin))

    def next_content_word(self, index: int, step: int) -> int | None:
        """
        The next content word of the same clause, searched from `index` in the direction `step`. If there are only
        function words, the first of them; `None` if there is no word.
        """
        spare = None
        for at in range(index, index + step * _REACH, step):
            if not 0 <= at < len(self.pieces):
                break
            word = self.traits[at]
            if not word.bare:
                if word.ends_clause or (step > 0 and _closes(self.word(at))):
                    break
                continue
            if self.denies[at]:
                continue
            if not word.is_skipped:
                return at
            spare = at if spare is None else spare
        return spare

    def clause_end(self, start: int) -> int:
        """Where the clause that continues at `start` ends, at most `_REACH` pieces later."""
        for at in range(start, min(start + _REACH, len(self.pieces))):
            if self.traits[at].ends_clause or self.traits[at].is_clause_mark:
                return at
        return min(start + _REACH, len(self.pieces))

    def clause_around(self, first: int, last: int) -> tuple[int, int]:
        """The range of the clause that contains some pieces, without the marks on both sides of it."""

        def is_edge(at: int) -> bool:
            return self.traits[at].ends_clause or self.traits[at].is_clause_mark

        start, end = first, last
        while start > max(first - _CLAUSE_REACH, 0) and not is_edge(start - 1):
            start -= 1
        while end < min(last + _CLAUSE_REACH, len(self.pieces)) and not is_edge(end):
            end += 1
        return start, end

    @cached_property
    def tables(self) -> list[list[re.Match]]:
        return _tables(self.text)

    def keep_clause_marks(self, start: int, end: int, at: int) -> None:
        """
        Keep the marks on both sides of a clause if words on both sides of them are kept, because "not shipped, ...
        cancel today" does not mean "not shipped today". The mark after the clause leads to the word `at`,
        because the words between them may be dropped.
        """
        before, behind = start - 1, end + 1
        while before > max(start - _CLAUSE_REACH, 0) and not self.traits[before - 1].ends_sentence:
            before -= 1
        while behind < min(end + _CLAUSE_REACH, len(self.pieces)) and not self.traits[behind].ends_sentence:
            behind += 1
        if end < len(self.pieces) and self.traits[end].is_clause_mark:
            self.rows.append((end, end + 1, behind, start))
            self.stands_at[end] = at
        if start > 0 and self.traits[start - 1].is_clause_mark:
            self.rows.append((start - 1, start, end, max(before, 0)))

    def phrase_end(self, at: int) -> int:
        """The end of the content words from `at` on: after "valid ticket" in "a valid ticket from the office"."""
        end = at + 1
        while end < len(self.pieces) and (word := self.traits[end]).bare and not word.is_skipped:
            if self.denies[end]:
                break
            end += 1
        return end

    def tie(self, first: int, last: int, at: int) -> None:
        """Bind each piece of a range to the piece `at`."""
        self.rows += [(index, at, at + 1, -1) for index in range(first, last)]

    def tie_all(self, first: int, last: int) -> None:
        """Bind each piece of a range to all of them."""
        self.rows += [(index, first, last, -1) for index in range(first, last)]

    def tie_clause(self, at: int) -> None:
        """
        If "that" follows the word `at`, bind the word to the clause after it: in "far from certain that ..." the word
        "certain" is kept with any word of the clause.
        """
        if at + 1 < len(self.pieces) and self.traits[at + 1].bare == "that":
            self.rows.append((at, at + 2, self.clause_end(at + 2), -1))

    def built(self) -> Bonds:
        rows = np.array(self.rows, dtype=np.int64).reshape(-1, 4).T
        clause_marks = [word.is_clause_mark for word in self.traits]
        words = np.array([bool(word.bare) for word in self.traits], dtype=bool)
        sentences = np.searchsorted(
            [end for _, end in split_sentences(self.text)], self.pieces.chars[1:] - 1, side="right"
        )
        return Bonds(
            *rows, self.marks, self.first_of_all, self.leads_to, np.array(clause_marks, dtype=bool), self.stops,
            np.array(self.pairs, dtype=np.int64).reshape(-1, 2), self.denies, words, sentences,
        )  # fmt: skip


def find_bonds(text: str, pieces: Pieces) -> Bonds:
    """Find the bonds between the pieces of a text in word units."""
    made = _Builder(text, pieces)
    # The attributes of tags are blanked out, because class="before" is not a limit.
    text = TAG.sub(lambda tag: "<" + "\x00" * (len(tag[0]) - 2) + ">", text) if "</" in text else text
    found = WordsOf(text)
    negations = [made.touched(*span) for span in sorted(_find_negations(found))]
    negations = [(first, last + made.is_at(last, _WITH_NEGATION, unless="than")) for first, last in negations]
    for first, last in negations:
        made.denies[first:last] = True
    for first, last in negations:
        counted = last if last < len(pieces) and made.traits[last].bare in _QUANTIFIERS else None
        at = made.next_content_word(last if counted is None else last + 1, 1)
        if at is None or _BEHIND_ITS_WORD.fullmatch(made.text[made.chars[first] : made.chars[last]].strip()):
            at = next((n for n in (made.next_content_word(first - 1, -1), at) if n is not None), None)
        if at is None:  # an answer such as "No."
            made.first_of_all[first:last] = True
        else:
            # The negation is only kept with words of its clause. Without them it would negate the text next to it.
            start, end = made.clause_around(first, last)
            made.rows += [(index, min(start, at), max(end, at + 1), -1) for index in (*range(first, last), at)]
            made.marks[first:last] = True
            made.tie_clause(at)
            made.keep_clause_marks(start, end, at)
            if counted is not None and counted != at:
                made.tie(counted, counted + 1, at)
    for match in _NE.finditer(text) if _FRENCH_NE.search(text) else ():  # both words of a French negation
        one, other = made.touched(*match.span(1 if match[1] else 2)), made.touched(*match.span(3))
        made.rows += [(other[0], *one, -1), (one[0], *other, -1)]
    for match in chain.from_iterable(words.finditer(found) for words in _REVERSERS):
        first, last = made.touched(*match.span())
        at = made.next_content_word(last, 1)
        if at is not None:
            made.tie(first, last, at)
            made.tie_clause(at)
    for match in _REFUSALS.finditer(found):
        first, last = made.touched(*match.span())
        passive = any(made.traits[at].bare in _PASSIVE for at in range(max(first - 2, 0), first))
        at = made.next_content_word(first - 1, -1) if passive else made.next_content_word(last, 1)
        if at is not None:
            # "Refused" may be kept without the rest of the clause, but the rest not without "refused".
            made.rows += [(index, at, at + 1 if passive else made.clause_end(at), -1) for index in range(first, last)]
            made.tie_clause(at)
    for match in _BECOMES.finditer(found):
        first, last = made.touched(*match.span())
        at = made.next_content_word(last, 1)
        if at is not None:
            made.rows.append((at, first, last, -1))
    denied = {last for _, last in negations}
    for match in _COMPARED.finditer(text):
        first, last = made.touched(*match.span())
        at = made.next_content_word(last, 1)
        if at is not None:
            made.tie(first, last, at)
            if first in denied:  # "not as tall as Tom" is not "not tall"
                made.rows += [(index, *made.clause_around(first, last), -1) for index in (*range(first, last), at)]
    for match in _BEFORE_NUMBER.finditer(found):
        first, last = made.touched(*match.span())
        if last < len(pieces):
            made.tie(first, last, last)
    for match in match_at(_RANGE, _DIGIT, text):
        first, last = made.touched(*match.span())
        before = made.traits[first - 1].bare if first else ""
        opens = before in _BETWEEN if match[3] else before in _FROM
        if opens or match[1]:
            made.tie_all(first - opens, last)
    for match in _TO_NAME.finditer(text):
        at, behind = made.touched(match.start() + 1, match.end())
        if at + 1 == behind < len(pieces) and at and made.word(at - 1).strip()[:1].isupper():
            made.rows.append((at, behind, behind + 1, at - 1))
            opening = next((n for n in range(at - 2, max(at - 5, -1), -1) if made.traits[n].bare in _FROM), None)
            if opening is not None:
                made.rows.append((opening, at, at + 1, -1))
    for match in _INITIALS.finditer(text):
        first, last = made.touched(match.start(), match.end() - 1)
        name = made.touched(match.end(), match.end() + 1)[0]
        if first < name and not made.traits[name].is_skipped:
            made.tie_all(first, last)
            made.rows += [(name, first, last, -1)]
    for match in _BUT.finditer(text):
        first, last = made.touched(*match.span(1))
        at = made.next_content_word(last, 1)
        if at is not None:
            made.tie_all(first, last)
            made.tie(first, last, at)
            made.rows += [(at, index, index + 1, -1) for index in range(first, last)]
    for match in _SHARE.finditer(text):
        first, last = made.touched(*match.span())
        at = made.next_content_word(last, 1)
        if at is not None:
            made.tie(first, first + 1, at)
            made.rows.append((at, first, first + 1, -1))
    for match in _CONDITIONS.finditer(found):
        first, last = made.touched(*match.span())
        at = made.next_content_word(last, 1)
        if at is not None:
            end = made.clause_end(last)
            made.rows += [(index, last, end, -1) for index in (*range(first, last), at)]
    for match in _PROVISOS.finditer(found):
        first, last = made.touched(*match.span())
        at = made.next_content_word(last, 1)
        if at is not None:
            start, _ = made.clause_around(first, last)
            made.rows += [(index, start, first, -1) for index in (*range(first, last), at)]
            # "only if" does not mean "if", so all of its words are kept with any word of the clause after them.
            made.rows += [(index, last, made.clause_end(last), -1) for index in range(first, last)]
    for match in _LIMITS.finditer(found):
        first, last = made.touched(*match.span())
        at = made.next_content_word(last, 1)
        if at is not None:
            made.tie(first, last, at)
            # "before autumn 2027" does not mean "before 2027".
            if at + 1 < len(pieces) and made.traits[at + 1].bare.isdecimal():
                made.tie(first, last, at + 1)
                made.tie(at, at + 1, at + 1)
            if made.text[made.chars[first] : made.chars[last]].strip().lower() in _PICKS:
                made.rows += [(index, at + 1, made.phrase_end(at), -1) for index in (*range(first, last), at)]
            made.marks[first:last] = True  # without its date, "before" would be misread
            if made.denies[first:last].any():  # "no later" says nothing without "than noon"
                made.denies[first:last] = True
                made.rows += [(index, *made.clause_around(first, last), -1) for index in (*range(first, last), at)]
    for match in chain(match_at(_DIGITS, _DIGIT, text), _COUNT.finditer(found)):
        first, last = made.touched(*match.span())
        at = made.next_content_word(last, 1) if last < len(pieces) else None
        # Only a word directly after the number. A unit is part of the number's piece already.
        if at == last and last == first + 1:
            made.rows.append((at, first, last, -1))
    for match in _EMPHASIS.finditer(text) if "*" in text else ():
        for sign in (1, 2):
            first, last = made.touched(*match.span(sign))
            made.marks[first:last] = [not any(c.isalnum() for c in made.word(at)) for at in range(first, last)]
    _tie_marks(made)
    _tie_tags(made)
    _tie_pairs(made)
    _tie_spans(made)
    _keep_last_turn(made)
    _set_leads(made)
    return made.built()


def _tie_tags(made: _Builder) -> None:
    """Bind each tag of HTML or XML to its partner or to its content, and the tags of table cells to their whole row."""
    text, open_ = made.text, []
    elements: list[tuple[str, int, int]] = []  # the name, and the spans of both tags
    for tag in TAG.finditer(text) if "</" in text else ():
        name = tag[2].lower()
        if tag[3] or name in _VOID:
            continue
        if not tag[1]:
            open_.append((name, tag.span()))
            continue
        place = next((n for n in range(len(open_) - 1, max(len(open_) - 32, -1), -1) if open_[n][0] == name), None)
        if place is not None:
            elements.append((name, open_[place][1], tag.span()))
            del open_[place:]
    rows = [(begin[1], end[0]) for name, begin, end in elements if name == "tr"]
    starts = [begin for begin, _ in rows]
    # Tags without a space between them may share a piece, so elements that share pieces form a chain with common bonds.
    # For each piece: the pieces of its chain, and the range to which they are bound.
    chain_of: dict[int, list] = {}
    for name, begin, end in elements:
        one, other = made.touched(*begin), made.touched(*end)
        pieces = [*range(*one), *range(*other)]
        # Tags that share a piece with other tags are kept or dropped with these.
        alone = all(made.word(piece).count("<") == 1 for piece in pieces)
        if (name in _LOOSE and alone) or not all(_MARKUP.fullmatch(made.word(piece)) for piece in pieces):
            made.rows += [(b, a, a + 1, -1) for a in pieces for b in pieces if a != b]
            continue
        first, last = one[1], other[0]
        row = bisect_right(starts, begin[0]) - 1 if name in ("td", "th") else -1
        if row >= 0 and end[1] <= rows[row][1]:
            first, last = made.touched(*rows[row])
        whole = [set(pieces), first, last]
        for glued in {id(c): c for c in map(chain_of.get, pieces) if c is not None}.values():
            small, large = sorted((whole[0], glued[0]), key=len)
            whole = [
                large | small if len(large) < 2 else (large.update(small) or large),
                min(whole[1], glued[1]),
                max(whole[2], glued[2]),
            ]
        for piece in whole[0]:
            chain_of[piece] = whole
    for piece, (_, first, last) in chain_of.items():
        made.marks[piece] = True
        made.rows.append((piece, first, last, -1))


def _tie_pairs(made: _Builder) -> None:
    """Keep each bracket or quotation mark together with its partner."""
    pairs, open_, end = [], [], 0
    for match in _PAIRED.finditer(made.text):
        sign, at = match[0], match.start()
        if "\n\n" in made.text[end:at]:  # no pair extends across an empty line
            open_ = []
        end = at
        if sign == '"':
            before, behind = made.text[at - 1 : at], made.text[at + 1 : at + 2]
            closes = bool(open_) and open_[-1][0] == '"' and not before.isspace()
            if not closes and (not behind.strip() or (before and before not in " \t\n([{*_")):
                continue
        else:
            closes = sign in _CLOSED_BY or (sign == "“" and bool(open_) and open_[-1][0] == "„")
        if not closes:
            open_.append((sign, at))
            continue
        wanted = "„" if sign == "“" else _CLOSED_BY.get(sign, sign)
        place = next((n for n in range(len(open_) - 1, max(len(open_) - 8, -1), -1) if open_[n][0] in wanted), None)
        if place is not None:
            pairs.append((open_[place][1], at))
            del open_[place:]
    if not pairs:
        return
    of_mark: dict[int, list] = {}
    for row in made.rows:
        if made.marks[row[0]]:
            of_mark.setdefault(row[0], []).append(row[1:])
    for opened, closed in pairs:
        one, other = made.touched(opened, opened + 1)[0], made.touched(closed, closed + 1)[0]
        # A piece with two closing brackets belongs to two pairs, so it is not removed if the inner pair is empty.
        if len(_PAIRED.findall(made.word(one))) == 1 == len(_PAIRED.findall(made.word(other))) and not any(
            map(str.isalnum, made.word(one) + made.word(other))
        ):
            made.pairs.append((one, other))
        for a, b in ((one, other), (other, one)) if one != other else ():
            # A mark cannot trigger a bond, so the bonds of one mark are copied to its partner.
            made.rows += [(b, *row) for row in of_mark.get(a, ())] if made.marks[a] else [(b, a, a + 1, -1)]


def _tie_spans(made: _Builder) -> None:
    """
    Keep both backticks of a code span together, and both signs of an emphasis. A sign of emphasis may share a piece
    with a bracket or full stop and be kept for its sake: "(High-Level)**".
    """
    for match in _CODE_SPAN.finditer(made.text) if "`" in made.text else ():
        one, other = made.touched(*match.span(1))[0], made.touched(*match.span(2))[0]
        if one != other:
            made.rows += [(one, other, other + 1, -1), (other, one, one + 1, -1)]
            if not any(map(str.isalnum, made.word(one) + made.word(other))):
                made.pairs.append((one, other))
    spans = [
        [made.touched(*match.span(sign)) for sign in (1, 2)]
        for match in (_EMPHASIS.finditer(made.text) if "*" in made.text else ())
    ]
    ends = {at for pair in spans for edge in pair for at in range(*edge)}
    reasons: dict[int, list] = {}
    for piece, *row in made.rows if ends else ():
        if piece in ends:
            reasons.setdefault(piece, []).append(row)
    for opened, closed in spans:
        for a, b in ((opened, closed), (closed, opened)):
            why = [row for piece in range(*a) if made.marks[piece] for row in reasons.get(piece, ())]
            made.rows += [(piece, *row) for piece in range(*b) if made.marks[piece] for row in why]


def _keep_last_turn(made: _Builder) -> None:
    """
    Keep the last turn of a conversation first if it is a question or if its speaker is one who asks. It is to be
    answered, so it is worth more than the turns before it, and the scores of its words do not show this.
    """
    roles = list(_ROLE.finditer(made.text))
    if len(roles) < _LEAST_TURNS or len({role[0].strip() for role in roles}) < 2:
        return
    last = roles[-1]
    said = made.text[last.end() :].rstrip()
    first, end = made.touched(last.end(), last.end() + max(len(said), 1))
    share = _SHARE_OF_FEW if end - first <= _FEW_WORDS else _LAST_SHARE
    if said and end - first <= share * len(made.pieces) and (_ASKS.fullmatch(last[0]) or said[-1] in "?？؟"):
        made.first_of_all[first:end] = True


def _tie_fences(made: _Builder) -> None:
    """
    Bind the first and last line of a code fence, and the line breaks around them, to the code. The same applies to
    front matter, the settings at the beginning of a document.
    """
    for start, end in chain(
        (match.span() for match in _FRONT_MATTER.finditer(made.text)), find_code_fences(made.text)
    ):
        opened = start + len(made.text[start:end].split("\n", 1)[0])
        closed = max(made.text.rfind("\n", opened, end) + 1, opened)
        if not made.text[closed:end].strip(" \t\r>`~-"):
            first, last = made.touched(opened, closed)
            # The line break after the first line is kept with any of the code.
            if opened < end and not made.word(first).strip():
                made.rows.append((first, first, last, -1))
            for a, b in ((start, opened), (closed, end)):
                made.add_marks(a, b, first, last)
                before = made.touched(a, b)[0] - 1 if b > a else -1
                if before >= 0 and "\n" in made.word(before):
                    made.rows.append((before, first, last, -1))


def _tables(text: str) -> list[list[re.Match]]:
    """The rows of each Markdown table: the header, the line under it, and at least one more."""
    tables: list[list[re.Match]] = []
    for row in _ROW.finditer(text) if "|" in text else ():
        if tables and text[tables[-1][-1].end() : row.start()].strip(" \t\r") == "\n":
            tables[-1].append(row)
        else:
            tables.append([row])
    return [table for table in tables if len(table) > 2 and _RULE.fullmatch(table[1][0])]


def _tie_tables(made: _Builder) -> None:
    """
    Bind the name of a column to each of its cells, the first cell of a row to the others, and the line under the header
    to the header.
    """
    for head, rule, *rows in made.tables:
        names = _cells(made, head)
        for row in rows if names else ():
            cells = _cells(made, row)
            if not cells:  # a row of empty cells
                continue
            for column, (first, last) in enumerate(cells):
                made.rows += [(at, first, last, -1) for at in range(*names[min(column, len(names) - 1)])]
            made.rows += [(at, cells[0][1], cells[-1][1], -1) for at in range(*cells[0])]
        whole = made.touched(*head.span())
        made.add_marks(*rule.span(), *whole)
        made.rows.append((max(made.touched(*rule.span())[0] - 1, 0), *whole, -1))  # the line break before it


def _cells(made: _Builder, row: re.Match) -> list[tuple[int, int]]:
    """The ranges of pieces of the cells of a row; empty cells are left out."""
    edges = [row.start() - 1, *(row.start() + pipe.start() for pipe in re.finditer(r"\|", row[0])), row.end()]
    spans = [(a + 1, b) for a, b in pairwise(edges) if made.text[a + 1 : b].strip()]
    inside = [
        (a + len(made.text[a:b]) - len(made.text[a:b].lstrip()), a + len(made.text[a:b].rstrip())) for a, b in spans
    ]
    return [made.touched(a, b) for a, b in inside]


def _set_leads(made: _Builder) -> None:
    """Let function words lead to the next content word of their clause, and signs to the word next to them."""
    num_pieces = len(made.pieces)
    words = made.traits
    marks, denies, leads_to = made.marks.tolist(), made.denies.tolist(), list(range(num_pieces))
    ahead = following = None
    for at in range(num_pieces - 1, -1, -1):
        bare, _, ends_clause, breaks_line, is_apart, is_leading, is_skipped, _ = words[at]
        if not bare:
            if ends_clause:
                ahead = following = None
            elif breaks_line:
                following = None
            elif following is not None and (is_apart or at == 0 or words[at - 1].breaks_line):
                leads_to[at] = following
            continue
        following = at
        if is_leading:
            if ahead is not None and not denies[at]:
                leads_to[at] = ahead
        elif not is_skipped and not marks[at] and not denies[at]:
            ahead = at
    behind = None
    for at, word in enumerate(words):
        if word.bare:
            behind = at
        elif word.breaks_line:
            behind = None
        elif behind is not None and not marks[at] and not word.is_apart:
            leads_to[at] = behind
    for mark, at in made.stands_at.items():
        leads_to[mark] = at
    made.leads_to = np.array(leads_to, dtype=np.int64)


def _tie_marks(made: _Builder) -> None:
    """Bind line breaks, item marks, speakers' names, table bars and ends of sentences to the text they belong to."""
    text, num_pieces = made.text, len(made.pieces)
    breaks = list(_breaks(text))
    places = [made.touched_blanks(*span) for span in breaks]
    starts = [0, *(last for _, last in places)]
    ends = [*(first for first, _ in places), num_pieces]
    line_starts = [0, *(b for _, b in breaks)]

    def line_of(char: int) -> int:
        return bisect_right(line_starts, char) - 1

    # If the last word of a line is a negation or limit, the marks of the line also belong to the next line.
    continued_until = {
        line: ends[line + 1]
        for line, (first, last) in enumerate(places)
        if 0 < first < last
        and made.marks[first - 1]
        and made.traits[first - 1].bare
        and not made.traits[first].ends_clause
    }
    for pattern in (_ITEM, _ROLE):
        for match in pattern.finditer(text):
            line = line_of(match.end() - 1)
            _, behind = made.touched(*match.span())
            until = ends[line] if behind < ends[line] else ends[min(line + 1, len(ends) - 1)]
            until = max(until, continued_until.get(line, 0))
            made.add_marks(*match.span(), min(behind, until), until)
    below = {row.start() for _, _, *rows in made.tables for row in rows}
    for match in _ROW.finditer(text) if "|" in text else ():
        line = line_of(match.end() - 1)
        before = starts[line]
        for pipe in re.finditer(r"\|", match[0]):
            at = match.start() + pipe.start()
            made.add_marks(at, at + 1, before, ends[line])
            # A row may have fewer cells than the header, so empty cells at its end may be dropped with their bars.
            if match.start() in below:
                before = made.touched(at, at + 1)[0]
    _tie_fences(made)
    _tie_tables(made)
    # A sentence begins after the end of the one before it, or with its line.
    behind = 0
    for a, b in find_sentence_ends(text):
        first, last = made.touched(a, b)
        made.add_marks(a, b, min(max(behind, starts[line_of(a)]), first), first)
        made.stops[first:last] = made.marks[first:last]
        behind = last
    for line, (a, b) in enumerate(breaks, 1):
        first, last = starts[line], ends[line]
        if made.marks[first:last].all() and line + 1 < len(ends):  # a line with only the name of a speaker
            last = ends[line + 1]
        made.add_marks(a, b, first, max(last, continued_until.get(line, 0)), begin=0)
