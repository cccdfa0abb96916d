from html.parser import HTMLParser

from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.evaluation.report import render_report
from stateset_agents.evaluation.summary import summarise
from tests.evaluation.made import policy

CONFIG = EvaluationConfig(
    seeds=[1, 2], bootstrap_samples=500, distinctness_floor=0.0, max_identical_answers=0.6
)
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """What is on a page: ids, links to them, external resources, text; refuses unclosed tags."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.external, self.texts, self.open = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name == "href" and value.startswith("#"):
                self.links.append(value[1:])
            elif name in ("src", "href"):
                self.external.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def ranked(scenario, seed):
    """Scenario n of either intent gains (n - 2) / 10: 0 and 1 lose, 2 ties, 3 to 5 gain."""
    return 0.5 + (int(scenario[-1]) - 2) / 10


def evaluation(champion=True, **options):
    policies = [
        policy("base", lambda scenario, seed: 0.3),
        policy("challenger", ranked, **options),
    ]
    if champion:
        policies.insert(1, policy("champion", lambda scenario, seed: 0.5))
    return summarise(policies, CONFIG)


def test_the_page_needs_nothing_from_elsewhere_and_every_link_leads_somewhere():
    text = render_report(evaluation())
    page = Page(text)
    assert page.external == []
    assert "http" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert len(page.ids) == len(set(page.ids))
    assert set(page.links) <= set(page.ids)
    assert sum("--" in one for one in page.ids) == 24  # a card for each scenario and seed


def test_the_worst_and_the_best_differences_come_first():
    ids = [one for one in Page(render_report(evaluation())).ids if "--" in one]
    assert [one.split("--")[0][-1] for one in ids] == list("000011115555444422223333")


def test_only_as_many_conversations_as_asked_are_shown_half_losses_half_gains():
    ids = [one for one in Page(render_report(evaluation(), conversations=4)).ids if "--" in one]
    assert sorted(one.split("--")[0][-1] for one in ids) == list("0055")


def test_what_was_said_stands_side_by_side_with_scores_and_rubric():
    page = Page(render_report(evaluation(answer="The number of {scenario}, please?")))
    words = page.text
    assert "The number of refund 0, please?" in words
    assert "Please send me the order number of refund 0." in words
    assert "asks for the order number" in words
    assert "✗ not met" in words
    assert "✓ met" in words


def test_words_that_look_like_markup_are_shown_and_not_run():
    text = render_report(evaluation(answer="<script>alert({scenario!r})</script>"))
    assert "<script>alert(" not in text
    assert "&lt;script&gt;alert(" in text


def test_the_page_says_when_the_base_stands_in_for_a_champion():
    alone, with_champion = (Page(render_report(evaluation(c))).text for c in (False, True))
    assert "the base model stands in for the champion" in alone
    assert "the base model stands in" not in with_champion
    assert "below" not in alone.split("interval")[0]


def test_the_verdict_names_the_difference_its_interval_and_a_broken_band():
    better = [policy("base", lambda s, seed: 0.3), policy("challenger", lambda s, seed: 0.5)]
    strict = CONFIG.model_copy(update={"max_identical_answers": 0.1})
    fine = Page(render_report(summarise(better, CONFIG))).text
    gamed = Page(render_report(summarise(better, strict))).text
    said = "The challenger's reward is 0.200 above the base model's (95% interval +0.200 to +0.200)"
    assert f"{said}." in fine
    assert f"{said}, but it is out of band: identical answers." in gamed
