"""Words and wordings that facts are made of. None of the forms is in `training.heldout`."""


def _words(text: str) -> list[str]:
    return text.split("|")


ATTRIBUTES = _words(
    "code|access code|pass key|pass key|password|secret number|colour|color|favourite colour|owner"
    "|capital|number|price|height|keeper|name|motto|age|weight|address|phone number|serial number"
    "|leader|author|title|captain|founder|symbol|language|currency|temperature|distance|length"
    "|width|depth|speed|budget|deadline|director|manager|inventor|birthplace|favourite food|pet"
    "|nickname|key|magic number|lucky number|identifier|reference number|room number|port|status"
    "|version|size|year|date|cost|fee|limit|rank|score|population|area|code name|code word|origin"
    "|destination|material|shape|flavour|brand|model|type|category|grade|level|guardian|teacher"
    "|winner|location|purpose|sign|seal|banner|ruler|river|mountain|song|flower|animal|metal|stone"
)
PEOPLE = frozenset(
    _words(
        "owner|keeper|leader|author|captain|founder|director|manager|inventor|guardian|teacher"
        "|winner|ruler"
    )
)
ORDINALS = _words(
    "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last|old|new|great|little"
    "|northern|southern|eastern|western|red|blue|green|white|black|golden|silver|lost|hidden"
)
PLACES = _words(
    "river|harbor|bridge|tower|garden|castle|village|city|valley|island|mountain|road|gate|room"
    "|house|ship|school|library|station|museum|project|machine|server|book|temple|king|prophet"
    "|well|field|lake|forest|market|mill|chapel|office|warehouse|vault|lamp|door|train|engine"
)
TITLES = ("Dr.", "Mr.", "Mrs.", "Captain", "King", "Queen", "Professor", "Agent", "Sister", "Lord")
COLOURS = _words("red|blue|green|yellow|purple|orange|crimson|amber|black|white|grey|violet|teal")
UNITS = _words("metres|miles|feet|kilograms|pounds|days|years|hours|dollars|euros|degrees|pages")
MONTHS = _words(
    "January|February|March|April|May|June|July|August|September|October|November|December"
)
ONSETS = _words(
    "b|c|d|f|g|h|j|k|l|m|n|p|r|s|t|v|w|z|br|cr|dr|fr|gr|kr|pr|tr|bl|cl|fl|gl|pl|sl|st|th|sh|ch"
)
VOWELS = _words("a|e|i|o|u|a|e|i|o|u|ai|ea|ee|oo|ou|ia")
CODAS = _words("|||n|r|l|s|t|m|k|x|d|th|nd|rn|st")

ASIDES = ("as everyone knows", "it turns out", "according to the record", "by the way", "of course")
CAUSES = ("Remember", "Note", "Remember this", "Important", "Keep in mind", "For the record")

# {x} attribute, {y} owner ("Anna" or "the old mill"), {p} its possessive, {v} value.
PLAIN_FORMS = (
    "The {x} of {y} is {v}.",
    "The {x} of {y} is {v}.",
    "{p} {x} is {v}.",
    "{v} is the {x} of {y}.",
)
OWNED_FORMS = (
    *[*PLAIN_FORMS] * 3,
    "The {x} of {y} was {v}.",
    "{cause}: the {x} of {y} is {v}.",
    "{cause}: {p} {x} is {v}.",
    *["{v} is the {x} of {y}."] * 6,  # the key after the value takes longest to learn
    *["{v} is {p} {x}."] * 2,
    "As for {y}, its {x} is {v}.",
    "As for {y}, the {x} is {v}.",
    "The {x} for {y} was set to {v}.",
    "The {x} for {y} is {v}.",
    "The {x} of {y}, {aside}, is {v}.",
    "{aside}, the {x} of {y} is {v}.",
    "For {y} the {x} is {v}.",
    "It is known that the {x} of {y} is {v}.",
    "They say that {p} {x} is {v}.",
    "The {x} of {y}: {v}.",
    "The {x} of {y} is {v}. Remember it. {v} is the {x} of {y}.",
    "The {x} of {y} is called {v}.",
    "We found that the {x} of {y} is {v} and wrote it down.",
    "The {x} of {y} is {v}, and it will not change.",
    *["{v} {goes_on} the {x} of {y}."] * 6,
    *["{v} {goes_on} {p} {x}."] * 2,
    *["{lead} {v} {goes_on} the {x} of {y}."] * 2,
)
# What may come after a value, so that its end is not told by one word. None of it is in
# training.heldout.
GOES_ON = _words(
    "is|was|became|remains|remained|must be|can be|may be|will be|would be|should be|might be"
    "|could be|had been|is now|is still|was always|is surely|is also|was once|is indeed"
    "|has become|used to be|serves as|served as|counts as|came to be|has to be|stayed"
    "|is given as|is written as|is said to be|is kept as|was chosen as|appears as|stands as"
    "|seems to be|happens to be|is known as|proved to be|is quite simply|has always remained"
)
LEADS = _words(
    "So|Now|Then|Yes,|In fact,|Today|Since then|As before,|And|But|In the end|Once more,"
    "|Officially|In short,|To be exact,|There|After all,"
)
# The value stands at the end, so that what comes before it asks for it.
RESTATED_FORMS = (
    "The {x} of {y} is {v}.",
    "{p} {x} is {v}.",
    "The {x} for {y} is {v}.",
    "As for {y}, the {x} is {v}.",
    "For {y} the {x} is {v}.",
)
SHORT_NAMES = _words(
    "Anna|Bob|Clara|Dan|Emma|Frank|Grace|Henry|Ida|Jack|Kate|Leo|Mary|Ned|Olga|Paul|Rose|Sam|Tina"
    "|Victor|Paris|Rome|London|Berlin|Texas|China|Peter|John|Martin|Alice|David|George"
)
BARE_FORMS = (
    "The {x} is {v}. Remember it. {v} is the {x}.",
    "The {x} is {v}. Remember it. {v} is the {x}.",
    "The {x} is {v}.",
    "The {x} is {v}.",
    "{cause}: the {x} is {v}.",
    "Remember that the {x} is {v}.",
    "{v} is the {x}.",
    "The {x}, {aside}, is {v}.",
    "The {x} was set to {v}.",
)
OWNED_QUESTIONS = (
    *["What is the {x} of {y}?"] * 8,
    "What is {p} {x}?",
    "What is {p} {x}?",
    "What is the {x} for {y}?",
    "What was the {x} of {y}?",
    "Tell me the {x} of {y}.",
)
BARE_QUESTIONS = (*["What is the {x}?"] * 6, "What was the {x}?", "Tell me the {x}.", "{x}?")
FREE_SHARE = 0.5  # of the questions are in forms that the statement's words do not give

FEW_SHARE = 0.8  # of the names and words, where a text has few of them

NOT_STATED = "The text does not say."

EVENTS = _words(
    "lunch|dinner|breakfast|the meeting|the lesson|the sale|the concert|the market|the race"
    "|the wedding|the trial|the play|the fair|the exam|the journey|the election|the party"
)
TIMES = _words("noon|midnight|dawn|dusk|nine|ten|two|three|four|five|six|seven|eight|half past one")
DAYS = _words("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")
ROLES = _words(
    "dean|clerk|head of finance|manager|director|porter|bishop|mayor|cook|gardener|treasurer"
    "|secretary|chief engineer|night guard|eldest son|librarian|doctor|judge|captain|teacher"
    "|head of sales|deputy director|owner|board|committee|baker|smith|miller|nurse|pilot"
)
DEEDS = _words(
    "travel|overtime|training|repairs|the books|the bills|the rooms|the horses|the letters"
    "|the bread|the gates|the wages|the taxes|holidays|the contracts|the reports|the maps|visits"
)
DEED_FORMS = (
    "{V} {does} {y}.",
    "{V} {does} {y}.",
    "{Y} {is_} {done} by {v}.",
    "{Y} {is_} {done} by {v}.",
    "{Y} {is_} always {done} by {v}.",
    "It is {v} who {does} {y}.",
    "As for {y}, {v} {does} it.",
    "{cause}: {v} {does} {y}.",
)
DEED_QUESTIONS = (
    *["Who {does} {y}?"] * 5,
    "By whom {is_} {y} {done}?",
    "Who is it that {does} {y}?",
    "{y} {is_} {done} by whom?",
)
EVENT_FORMS = (
    "{Y} is {at} {v}.",
    "{Y} is {at} {v}.",
    "{Y} will be {at} {v}.",
    "{cause}: {y} is {at} {v}.",
    "{Y} begins {at} {v}.",
    "{Y} takes place {at} {v}.",
)
