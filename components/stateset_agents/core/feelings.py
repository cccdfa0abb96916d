"""What the user feels, and whether an answer takes note of it.

Owns the cues of both. It knows no rewards.
"""

from __future__ import annotations

import re

from stateset_agents.core.sentences import Sentence, is_denied, normalised_words

_UPSET = re.compile(
    r" (?:angry|annoy\w*|frustrat\w*|furious|upset|disappoint\w*|unacceptable|ridiculous|terrible|"
    r"awful|horrible|worst|worried|worry|anxious|stress\w*|scared|afraid|sad|hate|fed up|sick of|"
    r"not happy|unhappy|had enough|waste of|joke|useless|disgust\w*|desperate|urgent\w*|"
    r"not (?:yet )?(?:arrived|come|received|got)|delayed|very late|too late|weeks? late|days? late|"
    r"waited|been waiting|still (?:no|not|waiting|nothing)|never (?:arrived|came|again)|"
    r"again and again|"
    r"third time|second time|how dare|let down|ruined|broken|damaged|crash\w*|lost|missing|wrong|"
    r"cracked|faulty|does not work|not working|stopped working|charged (?:me )?twice|ripped off) "
)
_GLAD = re.compile(
    r" (?:love|loving|great|excited|happy|amazing|awesome|fantastic|perfect|wonderful|thrilled|"
    r"delighted|thank|brilliant|passed|won|promoted|engaged|good news|finally works|"
    r"congratulat\w*|birthday|wedding) "
)
_NOTES_UPSET = re.compile(
    r" (?:sorry|apolog\w+|understand\w*|frustrating|annoying|must be|that sound\w*|not what (?:we|"
    r"you)|"
    r"should not have|you are right|i see why|no wonder|i hear you|worrying|disappointing|regret|"
    r"unfortunate|upsetting|stressful) "
)
_NOTES_GLAD = re.compile(
    r" (?:glad|happy to hear|great to hear|good to hear|lovely|congratulation|wonderful|"
    r"nice choice|good choice|great choice|enjoy|welcome|delighted|pleasure) "
)


def is_upset(text: str) -> bool:
    """True when the user complains, worries or is angry."""
    return bool(_UPSET.search(f" {' '.join(normalised_words(text))} "))


def is_glad(text: str) -> bool:
    """True when the user is pleased or thanks, and not upset."""
    flat = f" {' '.join(normalised_words(text))} "
    return bool(_GLAD.search(flat)) and not _UPSET.search(flat)


def notes_upset(sentence: Sentence) -> bool:
    """True for "I'm sorry", "that must be frustrating"; not for "I am not sorry"."""
    return _says(_NOTES_UPSET, sentence)


def notes_gladness(sentence: Sentence) -> bool:
    """True for "I'm glad to hear it", "congratulations"."""
    return _says(_NOTES_GLAD, sentence)


def _says(pattern: re.Pattern[str], sentence: Sentence) -> bool:
    text = sentence.stem_text
    return any(
        not is_denied(sentence, text[: match.start()].count(" "), reach=2)
        for match in pattern.finditer(text)
    )
