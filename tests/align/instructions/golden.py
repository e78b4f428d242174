"""Answers that were read by hand: kind -> settings -> (answer, whether it is met, why)."""

ENGLISH = "the weather was fine, so the children went to the river and played there all afternoon."
GERMAN = (
    "Das Wetter war schön, deshalb gingen die Kinder am Nachmittag zum Fluss und spielten dort."
)
FRENCH = (
    "Il faisait beau, alors les enfants sont allés jouer au bord de la rivière tout l'après-midi."
)

GOLDEN = {
    "keywords:existence": [
        (
            {"keywords": ["river", "boat"]},
            [
                ("A boat lay on the river.", True, "both are there"),
                ("A boat lay on the lake.", False, "one is missing"),
                ("RIVER and Boat", True, "in any case"),
                ("Riverside, boats", True, "within longer words counts"),
                ("", False, "an empty answer meets nothing"),
            ],
        ),
        ({"keywords": ["C++"]}, [("I like C++.", True, "signs are no pattern"),
                                 ("I like CCC.", False, "nor do they repeat a letter")]),
    ],
    "keywords:frequency": [
        (
            {"keyword": "tea", "frequency": 2, "relation": "at least"},
            [
                ("Tea, and more tea.", True, "two, in any case"),
                ("Tea is fine.", False, "one"),
                ("A teapot for tea.", True, "within a longer word counts"),
            ],
        ),
        (
            {"keyword": "tea", "frequency": 2, "relation": "less than"},
            [
                ("Tea is fine.", True, "one is less than two"),
                ("No such drink.", True, "none is, too"),
                ("Tea, and more tea.", False, "two is not less than two"),
            ],
        ),
    ],
    "keywords:forbidden_words": [
        (
            {"forbidden_words": ["rain", "wet"]},
            [
                ("It is dry.", True, "none of them"),
                ("The train is late.", True, "within a longer word is allowed"),
                ("Rain again!", False, "in any case"),
                ("So wet, so cold", False, "a comma ends a word"),
            ],
        ),
    ],
    "keywords:letter_frequency": [
        (
            {"letter": "e", "let_frequency": 3, "let_relation": "at least"},
            [
                ("Eleven", True, "E counts as e: three"),
                ("eel", False, "two"),
            ],
        ),
        (
            {"letter": "#", "let_frequency": 2, "let_relation": "less than"},
            [
                ("#one", True, "another character is counted as it is"),
                ("#one #two", False, "two is not less than two"),
            ],
        ),
    ],
    "language:response_language": [
        (
            {"language": "de"},
            [
                (GERMAN, True, "German"),
                (ENGLISH, False, "English"),
                (FRENCH, False, "French"),
                ("26", False, "no letter tells a language"),
            ],
        ),
        ({"language": "fr"}, [(FRENCH, True, "French"), (GERMAN, False, "German")]),
    ],
    "length_constraints:number_sentences": [
        (
            {"num_sentences": 2, "relation": "at least"},
            [
                ("It rains. We stay.", True, "two"),
                ("It rains and we stay", False, "one, without a mark"),
                ("Mr. Smith pays 3.50 for it.", False, "neither title nor decimal ends one"),
                ("Really?! Yes.", True, "several marks end one sentence"),
            ],
        ),
        (
            {"num_sentences": 2, "relation": "less than"},
            [
                ("It rains.", True, "one"),
                ("1. Rain", False, "the numeral of a list is a sentence"),
            ],
        ),
    ],
    "length_constraints:number_paragraphs": [
        (
            {"num_paragraphs": 2},
            [
                ("One\n***\nTwo", True, "parted by asterisks"),
                ("One *** Two ***", True, "nothing behind the last divider is no paragraph"),
                ("***\nOne\n***\nTwo", True, "nor is nothing before the first one"),
                ("One\n\nTwo", False, "an empty line is no divider"),
                ("One *** *** Two", False, "one without text in the middle fails"),
                ("One *** Two *** Three", False, "exactly two are wanted"),
            ],
        ),
    ],
    "length_constraints:number_words": [
        (
            {"num_words": 4, "relation": "at least"},
            [
                ("One two three four", True, "four"),
                ("One, two - three!", False, "marks are no words"),
                ("I don't know", True, "the apostrophe makes two of one"),
            ],
        ),
        (
            {"num_words": 4, "relation": "less than"},
            [("One two three", True, "three"), ("One two three four", False, "four is not")],
        ),
    ],
    "length_constraints:nth_paragraph_first_word": [
        (
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
            [
                ("First this.\n\nthen that.", True, "in any case"),
                ("First this.\n\nThen, that.", True, "without the comma"),
                ('First this.\n\n"Then that."', True, "without the quotation mark"),
                ("Then this.\n\nNow that.", False, "the other paragraph has it"),
                ("First this.\nThen that.", False, "one line end makes no paragraph"),
                ("A.\n\nThen b.\n\nC.", False, "three paragraphs"),
                ("A.\n\n\n\nThen b.", False, "places count the empty one, as in published scores"),
            ],
        ),
        (
            {"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"},
            [("a", False, "there is no second one")],
        ),
    ],
    "detectable_content:number_placeholders": [
        (
            {"num_placeholders": 2},
            [
                ("Dear [name], on [date]", True, "two"),
                ("[a][b][c]", True, "at least two"),
                ("Dear [name]", False, "one"),
                ("Dear [na\nme], on [date]", False, "each on one line"),
            ],
        ),
    ],
    "detectable_content:postscript": [
        (
            {"postscript_marker": "P.S."},
            [
                ("Bye.\n\nP.S. Write soon.", True, "as it is asked for"),
                ("Bye. p. s. soon", True, "in any case, with spaces"),
                ("Bye. PS: soon", False, "without full stops"),
                ("Bye.", False, "none"),
            ],
        ),
        (
            {"postscript_marker": "P.P.S"},
            [
                ("P. P. S: soon", True, "with spaces"),
                ("P.S. soon", False, "one P is missing"),
            ],
        ),
        ({"postscript_marker": "NB:"}, [("nb: soon", True, "any marker"),
                                        ("Note: soon", False, "another one")]),
    ],
    "detectable_format:number_bullet_lists": [
        (
            {"num_bullets": 2},
            [
                ("* a\n* b", True, "asterisks"),
                ("Two:\n  - a\n  - b\nDone.", True, "hyphens, indented"),
                ("* a\n* b\n* c", False, "exactly two"),
                ("**bold**\n* b", False, "bold print is no bullet"),
                ("1. a\n2. b", False, "numbers are none"),
                ("* a\n* b\n---", False, "a rule begins with a hyphen, as in published scores"),
            ],
        ),
    ],
    "detectable_format:constrained_response": [
        (
            {},
            [
                ("My answer is yes.", True, "one of the three"),
                ("Well. My answer is maybe. Sorry!", True, "within more text"),
                ("My answer is yes", False, "without the full stop"),
                ("my answer is yes.", False, "in another case"),
                ("Yes.", False, "another sentence"),
            ],
        ),
    ],
    "detectable_format:number_highlighted_sections": [
        (
            {"num_highlights": 2},
            [
                ("*one* and *two*", True, "single asterisks"),
                ("**one** and *two*", True, "double ones count once"),
                ("*one* and * *", False, "a blank highlights nothing"),
                ("*one\ntwo* three*", False, "a line end parts; only `* three*` is left"),
                ("**one**", False, "one"),
            ],
        ),
    ],
    "detectable_format:multiple_sections": [
        (
            {"section_spliter": "Section", "num_sections": 2},
            [
                ("Section 1\na\nSection 2\nb", True, "two heads"),
                ("Section1 a Section2 b", True, "the space may lack"),
                ("Section 1\na", False, "one"),
                ("SECTION 1 a SECTION 2 b", False, "in another case"),
                ("Section one, Section two", False, "numbers are digits"),
            ],
        ),
    ],
    "detectable_format:json_format": [
        (
            {},
            [
                ('{"a": [1, 2]}', True, "an object"),
                ('```json\n{"a": 1}\n```', True, "in a fence"),
                ("```\n[1]\n```", True, "in a fence without a name"),
                ('Here: {"a": 1}', False, "with text before it"),
                ("{'a': 1}", False, "single quotation marks"),
                ("42", True, "a number alone is JSON"),
            ],
        ),
    ],
    "detectable_format:title": [
        (
            {},
            [
                ("<<A day>>\nIt rains.", True, "a title"),
                ("<< >>\nIt rains.", False, "a blank is none"),
                ("<A day>\nIt rains.", False, "single brackets"),
                ("<<A\nday>>", False, "on two lines"),
            ],
        ),
    ],
    "combination:two_responses": [
        (
            {},
            [
                ("Yes.******No.", True, "two that differ"),
                ("******Yes.\n******\nNo.******", True, "a divider may stand around them"),
                ("Yes.******Yes.", False, "equal ones"),
                ("Yes.***No.", False, "three asterisks are no divider"),
                ("Yes.******No.******Maybe.", False, "three"),
                ("Yes.******\n******No.", False, "an empty one between"),
            ],
        ),
    ],
    "combination:repeat_prompt": [
        (
            {"prompt_to_repeat": "Name a river."},
            [
                ("Name a river.\nThe Elbe.", True, "repeated"),
                ("  NAME A RIVER. The Elbe.", True, "in any case"),
                ("You said: Name a river.", False, "something stands before it"),
                ("Name a river! The Elbe.", False, "not word for word"),
            ],
        ),
    ],
    "startend:end_checker": [
        (
            {"end_phrase": "That is all."},
            [
                ("It rains. That is all.", True, "at the end"),
                ('"It rains. THAT IS ALL."\n', True, "in any case, within quotation marks"),
                ("That is all. It rains.", False, "not at the end"),
                ("It rains. That is all!", False, "another mark"),
            ],
        ),
    ],
    "startend:quotation": [
        (
            {},
            [
                ('"It rains."', True, "around it"),
                (' "It" rains "now"\n', True, "white space around them does not matter"),
                ('"It rains.', False, "none at the end"),
                ('"', False, "one mark is not two"),
                ("\u201cIt rains.\u201d", False, "typographic marks are others"),
            ],
        ),
    ],
    "change_case:capital_word_frequency": [
        (
            {"capital_frequency": 2, "capital_relation": "at least"},
            [
                ("NASA and ESA", True, "two"),
                ("I see A bird", True, "single letters are words"),
                ("NASA and Esa", False, "one capital does not do"),
                ("DON'T", True, "a contraction is two, as in published scores"),
                ("CANNOT", True, "so is this one"),
                ("COVID-19", False, "a hyphen parts no word"),
            ],
        ),
        (
            {"capital_frequency": 1, "capital_relation": "less than"},
            [("No such word", True, "none"), ("**STOP**", False, "marks around it do not count")],
        ),
    ],
    "change_case:english_capital": [
        (
            {},
            [
                (ENGLISH.upper(), True, "English, no small letter"),
                (ENGLISH.upper() + " x", False, "one small letter"),
                (GERMAN.upper(), False, "not English"),
                ("12", False, "no letter"),
            ],
        ),
    ],
    "change_case:english_lowercase": [
        (
            {},
            [
                (ENGLISH, True, "English, no capital"),
                (ENGLISH.capitalize(), False, "one capital"),
                (GERMAN.lower(), False, "not English"),
                ("12", False, "no letter"),
            ],
        ),
    ],
    "punctuation:no_comma": [
        (
            {},
            [
                ("It rains; we stay.", True, "none"),
                ("It rains, we stay.", False, "one"),
                ("1,000", False, "in a number as well"),
                ("\u4f60\u597d\uff0c\u4e16\u754c", True, "a full-width comma is another sign"),
            ],
        ),
    ],
}  # fmt: skip
