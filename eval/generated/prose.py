"""Filler prose from a seeded grammar: plain English about a valley, its people and their trades.

Owns: the words, the sentence patterns, paragraphs of a wanted length. Never: digits, codes or anything that a needle
says, so that a needle stands in one place only; a global random generator.

About 10^10 different sentences; `text` repeats none within one text until a pattern's words run out.
"""

from __future__ import annotations

import random
import re
from typing import Final

PEOPLE: Final = (
    "the miller", "the postwoman", "a retired pilot", "the beekeeper", "the choir", "an old weaver", "the ferryman",
    "the schoolteacher", "a travelling dentist", "the baker's apprentice", "the clockmaker", "a visiting painter",
    "the night nurse", "the stonemason", "two cousins from the coast", "the librarian", "a group of walkers",
    "the goat farmer", "the organ builder", "the station master", "a young botanist", "the village council",
    "the carpenter", "an amateur astronomer", "the washerwomen", "the cheese merchant", "a stranger in a grey coat",
    "the gardener", "the fire brigade", "the bookbinder", "a pair of musicians", "the innkeeper",
)  # fmt: skip
PLACES: Final = (
    "behind the old mill", "on the market square", "near the lower bridge", "at the edge of the forest",
    "in the upper meadow", "beside the frozen pond", "along the railway line", "under the chestnut trees",
    "in the harbour office", "on the windy side of the hill", "in the cellar of the inn", "next to the stone wall",
    "at the mouth of the river", "in the schoolyard", "on the road to the quarry", "between the two vineyards",
    "in front of the chapel", "at the foot of the tower", "in the abandoned glassworks", "on the ferry landing",
    "above the waterfall", "in the reading room", "by the salt marsh", "on the terrace of the bath house",
)  # fmt: skip
TIMES: Final = (
    "early in the morning", "on a quiet afternoon", "after the first snow", "towards the end of the summer",
    "in the week before the fair", "during the long drought", "when the fog had lifted", "shortly after sunset",
    "on the last day of the harvest", "once the ice was thick enough", "in the middle of the rainy season",
    "while the bells were still ringing", "before anybody else was awake", "in the year of the great flood",
    "as soon as the roads were dry", "on the evening of the concert", "after a good deal of talking",
    "between two thunderstorms",
)  # fmt: skip
DEEDS: Final = (
    "repaired a wooden boat", "counted the swallows", "mended the torn nets", "planted a row of pear trees",
    "told a story about a talking heron", "carried baskets of plums to the cart", "sharpened every knife in the house",
    "painted the shutters blue", "argued about the price of wool", "dried herbs on long strings",
    "searched for the lost dog", "wrote a letter to a distant aunt", "cleaned the brass lamps",
    "listened to the frogs", "built a small dam of stones", "baked flat bread on hot slate",
    "measured the shadow of the tower", "folded paper lanterns", "played cards without speaking",
    "sorted seeds into glass jars", "cut reeds for the roof", "taught the children to whistle",
    "gathered mushrooms in a felt hat", "rolled empty barrels down the slope", "copied an old map by hand",
    "watched the herons fish", "stacked firewood against the wall", "tuned the piano with great patience",
)  # fmt: skip
THINGS: Final = (
    "a brass compass", "the copper kettle", "a basket of quinces", "the oldest of the three bells", "a folded umbrella",
    "the weather vane", "a jar of dark honey", "the painted cupboard", "a bundle of letters", "a spare oar",
    "a woollen blanket", "the wooden ladder", "a box of coloured chalk", "the heavy door", "a rusty bicycle",
    "the stuffed owl", "a crate of lemons", "the broken harmonica", "a roll of linen", "the garden gate",
)  # fmt: skip
STATES: Final = (
    "smelled faintly of smoke", "had been forgotten for years", "was worth more than it seemed",
    "looked smaller than people remembered", "creaked whenever the wind turned", "was covered with fine dust",
    "belonged to nobody in particular", "had survived two fires", "shone as if it were new",
    "was heavier than one would think", "had lost most of its colour", "always came back to its owner",
    "made visitors smile", "stood where it had always stood", "was mentioned in several songs",
)  # fmt: skip
WEATHER: Final = (
    "A thin rain fell", "The wind came from the north", "Clouds gathered over the ridge", "The sun was pale and low",
    "A warm mist hung over the fields", "Frost covered the windows", "The air was still", "Hail drummed on the roofs",
    "The evening turned golden", "A storm passed far out at sea", "The snow had begun to melt",
    "Dust rose from the road",
)  # fmt: skip
THOUGHTS: Final = (
    "it would be a good year for apples", "the river would rise again", "nobody needed a newer road",
    "silence was the best answer", "the swallows knew more than the almanac", "every tool wants its own hook",
    "patience costs nothing", "the town was too far away", "a debt should be paid before winter",
    "music is lighter than bread", "the old songs were the better ones", "strangers bring good stories",
    "a wall is only as good as its lowest stone", "the moon pulls at the roots", "the bridge ought to be painted",
)  # fmt: skip
PATTERNS: Final = (
    "{Time}, {person} {deed} {place}.",
    "{Person} {deed}, and {person2} {deed2}.",
    "{Weather}, and {person} {deed} {place}.",
    "{Thing}, kept {place}, {state}.",
    "{Person} said that {thought}, and {person2} agreed {time}.",
    "It was {place} that {person} {deed} {time}.",
    "Nobody was surprised when {person} {deed} {place}.",
    "{Weather} while {person} {deed}; {thing} {state}.",
    "For as long as anyone could tell, {thing} {state}.",
    "{Place}, {person} {deed} instead of waiting for {person2}.",
    "Some believed that {thought}; others, among them {person}, merely {deed}.",
    "{Person} had never understood why {thing} {state}, but {deed} all the same.",
    "{Time}, it seemed that {thought}.",
    "Whoever passed {place} could hear how {person} {deed}.",
)
_WORDS: Final = {
    "person": PEOPLE, "person2": PEOPLE, "place": PLACES, "time": TIMES, "deed": DEEDS, "deed2": DEEDS,
    "thing": THINGS, "state": STATES, "weather": WEATHER, "thought": THOUGHTS,
}  # fmt: skip
_SLOT: Final = re.compile(r"\{(\w+)\}")
_TRIES: Final = 20


def sentence(rng: random.Random) -> str:
    """One sentence."""
    pattern = rng.choice(PATTERNS)
    picked: dict[str, str] = {}
    for slot in _SLOT.findall(pattern):
        taken = set(picked.values())
        picked[slot] = rng.choice([word for word in _WORDS[slot.lower()] if word not in taken])

    def fill(match: re.Match[str]) -> str:
        text = picked[match.group(1)]
        return text[0].upper() + text[1:] if match.group(1)[0].isupper() else text

    return _SLOT.sub(fill, pattern)


def sentences(rng: random.Random, characters: int) -> list[str]:
    """Different sentences of `characters` in all, spaces between them counted; short of it by one sentence at most."""
    found: list[str] = []
    seen: set[str] = set()
    left = characters
    while True:
        for _ in range(_TRIES):
            text = sentence(rng)
            if text not in seen:
                break
        if len(text) + 1 > left:
            return found
        seen.add(text)
        found.append(text)
        left -= len(text) + 1


def paragraphs(rng: random.Random, texts: list[str]) -> str:
    """The sentences in order, in paragraphs of four to seven."""
    lines: list[str] = []
    start = 0
    while start < len(texts):
        end = start + rng.randint(4, 7)
        lines.append(" ".join(texts[start:end]))
        start = end
    return "\n".join(lines)
