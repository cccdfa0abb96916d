"""Whether a sentence asks the reader for something.

Owns the cues of questions and requests. An offer ("how can I help you?") asks for nothing.
"""

from __future__ import annotations

import re

from stateset_agents.core.sentences import Sentence

_OFFER = re.compile(
    r" (?:how (?:can|may|could|should) (?:i|we)|what (?:can|may|could) (?:i|we)|"
    r"(?:can|may|could|shall|should) (?:i|we) (?:\w+ )?(?:help|assist|do|offer)|"
    r"would you (?:like|prefer) (?:me|us|some help)|do you (?:want|need) (?:me|us|help|any help)|"
    r"did you know|anything else|any other question|"
    r"(?:can|could|would|will) you (?:please )*(?:help|assist|wait|hold|imagine|believe|guess)) "
)
_QUESTION = re.compile(
    r" (?:what|which|when|where|who|whose|why|how) "
    r"| (?:can|could|would|will) you | (?:may|can|could|might) (?:i|we) (?:\w+ )?"
    r"(?:have|ask|get|see|know|check|confirm|verify) "
    r"| (?:do|does|did|have|has|had|is|are|was|were|should) (?:you|your|it|they|there|the|this|"
    r"that|these|those|any|anything|anyone|he|she) "
)
_REQUEST = re.compile(
    r" (?:please (?:\w+ )?(?!note|accept|allow|be|bear|rest|wait|understand|feel|help|hold|do|know)"
    r"(?:\w+)"
    r"|(?:let|tell|send|give|show|email|message) (?:me|us)"
    r"|(?:share|provide|confirm|send|state|include|attach|enter|quote|reply with|describe) "
    r"(?:your|the|a|an|me|us|it|both|which|what|whether)"
    r"|(?:i|we) (?:\w+ )?(?:need|require)|(?:i|we) would (?:like to|need to) (?:know|ask|see|have)"
    r"|(?:can|could|would|will) you|(?:may|can|could) (?:i|we) have) "
)
_DENIAL_REACH = 4
# "I will send the form": the speaker does it, nobody is asked.
_OWN_ACTION = re.compile(r"(?:^| )(?:i|we|they|it|he|she|to)(?: \w+)? $| (?:will|can) $")


def asks(sentence: Sentence) -> bool:
    """True for a question that wants to be answered, or a request; not for an offer to help.

    "You do not need to send ..." and "never share ..." do not ask.
    """
    text = f" {' '.join(sentence.words)} "
    if _OFFER.search(text):
        return False
    if sentence.is_question and _QUESTION.search(text):
        return True
    for match in _REQUEST.finditer(text):
        cue = match.group().split()
        before = text[: match.start() + 1]
        own = cue[0] not in {"please", "i", "we", "can", "could", "would", "will", "may"}
        if own and _OWN_ACTION.search(before):
            continue
        first = before.count(" ") - 1
        last = first + len(cue)
        if any(first - _DENIAL_REACH <= at < last for at in sentence.negator_positions):
            continue
        return True
    return False
