"""Word lists of the hidden utilities."""

from __future__ import annotations


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


WARM = _listed(
    """
    amazing appreciate appreciated awesome beautiful beautifully beloved bless bright calm care cared caring cheer
    cheerful cheers comfort comfortable comforting compassion congratulations cosy cozy dear delicious delight
    delighted delightful encourage encouraging enjoy enjoyable enjoyed enjoying enjoyment enjoys excellent excited
    exciting fantastic favorite favourite friend friendly friends friendship fun generous gentle gently glad gladly
    good grateful gratitude great happily happiness happy heart hearts hope hopeful hug hugs joy joyful kind kindly
    kindness laugh laughter love loved lovely loves loving nice peace peaceful perfect please pleased pleasure
    pleasant proud relax relaxed relaxing rewarding safe smile smiles smiling splendid sunny support supportive
    sweet thank thankful thanks thoughtful together trust warm warmth welcome welcoming well wonderful wonderfully
    """
)
"""Words that sound kind."""

FIRST_PERSON = _listed(
    """
    i me my mine myself i'm i've i'll i'd im ive we us our ours ourselves we're we've we'll we'd
    """
)
"""Words with which an answer speaks of itself."""

STOP_WORDS = _listed(
    """
    a about above after again against all almost also always am an and another any anyone anything are aren't around
    as ask at away back be because been before beginner being below best better between both but by can can't cannot
    could couldn't did didn't do does doesn't doing don't done down during each either else enough enjoy even ever
    every everyone everything explain few find first for friend from further get gets getting give gives go goes
    going got had hadn't has hasn't have haven't having he he's her here hers herself him himself his how however i
    i'd i'll i'm i've if in instead into is isn't it it's its itself just keep know last least less let let's like
    little look lot made make makes making many may maybe me might more most much must mustn't my myself need needs
    never new next no nor not nothing now of off often on once one only or other others our ours ourselves out over
    own people per plan please put quite rather really right said same say says see sentences shall she she's should
    shouldn't since so some someone something sometimes still such sure take takes tell than that that's the their
    theirs them themselves then there there's these they they're they've thing things think this those though
    through to too trouble try under until up upon us use used useful using usually very want wants was wasn't way
    we we'd we'll we're we've weekend well were weren't what what's when where whether which while who who's whom
    whose why will with within without won't would wouldn't wrong yes yet you you'd you'll you're you've your yours
    yourself advice
    """
)
"""Words that don't tell what a text is about; those of the question templates are among them."""
