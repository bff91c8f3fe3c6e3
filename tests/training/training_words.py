"""Word lists as small as a test needs."""

WORDS = {
    "nouns": [f"noun{c}" for c in "abcdefghijklmnop"],
    "rare_nouns": [f"rare{c}" for c in "abcdefghijklmnop"],
    "names": [f"Name{c}" for c in "abcdefghijklmnop"],
    "words": [f"word{c}" for c in "abcdefghijklmnop"],
}
