"""Closed lists of English words that `sentences.py` and the rewards read.

Owns data only. All words are in the normalised form: lower case, contractions expanded.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NUMBER_WORDS: dict[str, int] = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
TENS: dict[str, int] = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
    "eighty": 80, "ninety": 90,
}  # fmt: skip

FUNCTION_WORDS: frozenset[str] = _words(
    "a an the this that these those some any no each every all both either neither much many more "
    "most few little other another such own same i me my mine myself we us our ours ourselves you "
    "your yours yourself he him his she her hers it its itself they them their theirs who whom "
    "whose which what when where why how and or but nor so yet if because as until while although "
    "though since unless whether than then of at by for with about against between into through "
    "during before after above below to from up down in out outside inside on off over under again "
    "once here there within without upon via am is are was were be been being have has had having "
    "do does did doing done will would shall should can could may might must cannot not only just "
    "too very also even still already please yes let however instead per 1"
)

NEGATORS: frozenset[str] = _words(
    "not cannot never no nobody none nothing neither nor unable impossible"
)

# Where a negator does not deny what follows: the match's words are left out of the negators.
NOT_REALLY_NEGATED: re.Pattern[str] = re.compile(
    r"(?<= )(?:not only|no problem|no worry|no worries|not worry|not hesitate|not forget|no doubt|"
    r"no matter|never mind|not a problem|no trouble|no reason|not mind|or not|if not|why not|"
    r"no (?:later|longer|more) than|not (?:later|longer|more) than)(?= )"
)

# A new clause begins at these words ...
CLAUSE_OPENERS: frozenset[str] = _words(
    "but however although though because so unless whereas while yet otherwise"
)
# ... and at a comma, "and" or "or" that is followed by one of these.
CLAUSE_SUBJECTS: frozenset[str] = _words(
    "i we you it they he she this that there please then just can could would may what which "
    "will your our once cannot"
)

DOUBLING_IS_FINE: frozenset[str] = frozenset({"that", "had"})

ABBREVIATIONS_NEVER_LAST: frozenset[str] = _words("e.g i.e mr mrs ms dr vs approx nr est incl excl")
ABBREVIATIONS_BEFORE_CAPITAL: frozenset[str] = _words(
    "etc a.m p.m inc ltd co u.s u.k min max st dept tel"
)

# Words that are verbs wherever they stand (auxiliaries, and verbs that are hardly used as nouns).
VERBS: frozenset[str] = _words(
    "accept add advise agree allow am apologise apologize appear apply approve are arrange arrive "
    "ask assist assure attach avoid be become been begin being belong bend break bring broke "
    "build burn buy came can cancel cannot carry charge check choose clear click close collect "
    "come comes compare complete confirm connect consider consist contact contain continue "
    "correct cost could cover create decide deduct deliver depend describe did dispatch do does "
    "download drink drop dry earn eat enable end enjoy ensure enter escalate exceed exchange "
    "expect expire explain fall fill find fix follow forward found gave get give go got grant "
    "grow guess had handle hang happen has have hear help hold hope hurt include inform insert "
    "install investigate involve iron is issue join keep know last lead learn leave left lend let "
    "lift listen locate look lose lost made make may mean meet melt mention might miss must need "
    "notice notify occur offer open own paid pass pause pay pick plug pour prefer press prevent "
    "print proceed process protect prove provide pull push put raise reach read receive recommend "
    "redeem reduce refer reflect refuse reinstall relax release rely remain remember remind "
    "remove renew repair repeat replace reply report request require resend reset resolve respond "
    "restart restock resubmit review reward ring rise rub run said save say scan screw see seem "
    "select sell send sent serve set shake shall share shine should show sign sit slide soak "
    "solve sort speak spend spread stand start state stay stick stop stretch submit suggest "
    "support survive switch take talk tell thank think tick tie tighten took track transfer treat "
    "try turn type understand unlock unplug unsubscribe untick update upgrade upload use vary "
    "verify visit wait want warn was wash wear weigh went were will wipe wish wonder work worry "
    "would wrap write"
)

# Words that are verbs only behind a subject, an auxiliary or "to", or as an imperative.
VERB_OR_NOUN: frozenset[str] = _words(
    "account address answer bill book call change claim complain contest credit damage delay email "
    "estimate experience fit label like log login mail match message note order pack package "
    "payment phone place post price promise question record refund reject return sale ship stock "
    "store swap test text ticket value view void"
)
VERB_CUES: frozenset[str] = _words(
    "i we you they it he she to will would can could cannot may might must should shall not please "
    "do does did let us and then simply just only first now always never also who that"
)

# Behind a word that may be a noun or a verb, these show that it is a verb.
OBJECT_OPENERS: frozenset[str] = _words("the your a it this that any")

# What stands behind a verb more often than behind the second noun of a compound.
FOLLOWS_A_VERB: frozenset[str] = _words(
    "the a an every each your our it them all any after before within when once in into under "
    "until free"
)

# A sentence may be one of these alone, and a short one that begins with them needs no verb.
COURTESIES: frozenset[str] = _words(
    "sorry thanks apologies welcome congratulations course pleasure yes no sure certainly "
    "absolutely understood noted hello hi goodbye"
)

# Content words that a sentence may hold and still say nothing of the matter.
COURTESY_WORDS: frozenset[str] = _words(
    "thank help happy glad assist question concern inquiry welcome today feel free hesitate reach "
    "understand sorry inconvenience issue problem matter provide information know let like good "
    "great hear sure course certainly pleasure mean see explain easy tell trouble patience hope "
    "need else anything unclear clear write message look check apologise apologize apology "
    "appreciate contact support customer service larkmoor shop"
)
