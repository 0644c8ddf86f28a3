"""What simulated people ask about: everyday topics, some for training, others that no training ever sees."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from feedback.contracts import Message

Split = Literal["train", "held_out"]

TEMPLATES = (
    "What should a beginner know about {topic}?",
    "Give me some advice on {topic}.",
    "I have trouble with {topic}. What can I do?",
    "Explain {topic} to a friend in a few sentences.",
    "What do people most often get wrong about {topic}?",
    "Why do people enjoy {topic}?",
    "How would you plan a weekend around {topic}?",
    "Tell me something useful about {topic}.",
)

_TRAIN = """
baking sourdough bread | growing tomatoes on a balcony | riding a bicycle to work | learning to swim as an adult
keeping houseplants alive | cooking rice without burning it | packing a suitcase for a week
walking a dog in the rain | reading before bedtime | brewing coffee at home | painting a bedroom wall
fixing a dripping tap | saving money on groceries | writing a birthday card | taking photos of the night sky
choosing running shoes | training for a ten kilometre race | making pancakes on Sunday | sharing a flat with friends
sleeping better in summer | keeping a diary | learning to juggle | playing chess with children | visiting a museum
hosting a dinner party | knitting a warm scarf | sorting old photographs | cleaning a kitchen oven
planting spring bulbs | feeding garden birds | watching whales from a boat | camping in the woods
hiking with a heavy backpack | reading a paper map | learning a few words of Spanish | singing in a choir
tuning an acoustic guitar | listening to jazz records | buying a second-hand car | driving on snow
crossing a desert by train | moving to a new city | meeting the neighbours | writing a cover letter
preparing for a job interview | asking for a pay rise | working from the kitchen table | taking useful notes
giving a short speech | remembering names | getting up early | drinking enough water
stretching after a long flight | doing yoga at home | lifting weights safely | treating a small burn
calming a crying baby | teaching a child to read | telling bedtime stories | building a tree house
flying a kite on the beach | making a paper lantern | folding origami cranes | carving a pumpkin
decorating a small room | hanging pictures straight | choosing curtains | ironing a linen shirt
removing coffee stains | mending a torn jacket | polishing leather boots | composting vegetable scraps
collecting rainwater | keeping bees | raising chickens | adopting an old cat | brushing a long-haired dog
cleaning a fish tank | setting up a bird bath | pruning apple trees | harvesting strawberries | cooking lentil soup
grilling vegetables | baking a chocolate cake | making fresh pasta | pickling cucumbers | freezing leftovers
eating less sugar | shopping at a farmers market | tasting cheese | serving tea to guests
learning ballroom dancing | going to the theatre alone | joining a book club | volunteering at a shelter
organising a street party | planning a family reunion | writing to a pen friend | solving crossword puzzles
playing board games in winter | building model trains | collecting stamps | drawing faces
painting with watercolours | learning calligraphy | throwing clay pots | restoring wooden chairs
sharpening kitchen knives | repairing a flat bicycle tyre | insulating old windows | lowering the heating bill
recycling glass and paper | backing up family photos | choosing strong passwords | buying a used telephone
spending less time online | waiting at the airport | travelling with small children | sleeping on a night train
swimming in cold lakes
"""

_HELD_OUT = """
roasting a chicken | sailing a small boat | learning the violin | catching the last bus | writing short poems
growing herbs indoors | cutting your own hair | riding a horse | skating on a frozen pond | making orange marmalade
visiting an elderly aunt | choosing a mattress | planting a hedge | cooking over a campfire | climbing a steep hill
keeping a budget | learning sign language | playing table tennis | cleaning windows | baking apple pie
exploring a cave | sewing on a button | learning to whistle | drying mushrooms | writing thank-you notes
renting a canoe | surviving a heat wave | building a snowman | making candles | sharing an umbrella
tending a rose garden | growing potatoes in a bucket | playing the drums quietly | returning library books
choosing a wedding gift | hanging a hammock | learning first aid | brewing ginger beer | watching the sunrise
wrapping presents | making a salad interesting | painting a garden fence | crossing a busy street
learning to type fast | borrowing tools | fishing from a pier | picking blackberries | organising a wardrobe
cooking for one | packing a school lunch | sweeping a chimney | calling a grandparent | growing a moustache
buying winter gloves | visiting a lighthouse | making hot chocolate | identifying trees | choosing a haircut
learning magic tricks | sleeping in a tent
"""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(topic.strip() for line in text.strip().splitlines() for topic in line.split("|"))


TRAIN_TOPICS = _listed(_TRAIN)
HELD_OUT_TOPICS = _listed(_HELD_OUT)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question about a topic."""

    topic: str
    text: str

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question as a conversation of one turn."""
        return (Message(role="user", content=self.text),)


def topics(split: Split) -> Sequence[str]:
    """The topics of a split; the two share none."""
    return TRAIN_TOPICS if split == "train" else HELD_OUT_TOPICS


def prompts(split: Split, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts in an order that only the seed decides.

    Every topic comes once before any comes again, each time with another template until all were used: a short run sees
    as many topics as it can.
    """
    rng = random.Random(f"topics:{split}:{seed}")  # noqa: S311  not for secrets
    names, first = list(topics(split)), {}
    for name in names:
        first[name] = rng.sample(TEMPLATES, len(TEMPLATES))
    chosen: list[Prompt] = []
    round_number = 0
    while len(chosen) < count:
        rng.shuffle(names)
        chosen += [
            Prompt(name, first[name][round_number % len(TEMPLATES)].format(topic=name))
            for name in names[: count - len(chosen)]
        ]
        round_number += 1
    return chosen
