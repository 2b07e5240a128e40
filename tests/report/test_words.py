"""True sentences, of gains and of losses."""

import pytest

from grace_moe.evaluation import modelled_layer_time
from grace_moe.planning import METHODS
from grace_moe.report import html_page, sentence
from grace_moe.report.words import LABELS, frontier_title, key_numbers

from .pages import scaled


def test_the_sentence_of_a_gain(content):
    was = content.before.evaluation.load_max_over_mean
    assert sentence(scaled(content, copies=0.75, busiest=1.05, slots=1.25)) == (
        "On 2 nodes x 2 devices, GRACE sends 25% fewer token copies between nodes than contiguous placement, and the busiest device "
        f"carries 1.05x the mean load (contiguous: {was:.2f}x); it holds 25% more expert memory."
    )


@pytest.mark.parametrize(
    ("copies", "busiest", "slots", "words"),
    [
        (1.1, 1.0, 1.0, "GRACE sends 10% MORE token copies between nodes than contiguous placement, but the busiest device carries 1.00x"),
        (0.5, 2.5, 1.0, "50% fewer token copies between nodes than contiguous placement, but the busiest device carries 2.50x"),
        (1.0, 2.5, 1.0, "GRACE sends as many token copies between nodes as contiguous placement, and the busiest device carries 2.50x"),
        (2.0, 2.5, 2.0, "100% MORE token copies between nodes than contiguous placement, and the busiest device carries 2.50x"),
    ],
)
def test_the_sentence_of_a_loss(content, copies, busiest, slots, words):
    lost = scaled(content, copies=copies, busiest=busiest, slots=slots)
    found = sentence(lost)
    assert words in found
    assert ("which is worse" in found) == (busiest > content.before.evaluation.load_max_over_mean)
    assert found.endswith("it needs no more memory." if slots == 1 else "it holds 100% more expert memory.")
    assert html_page(lost).count('class="change worse"') >= 1


def test_key_numbers_are_the_comparisons(comparison, content):
    for side, row in (("before", content.before), ("after", content.after)):
        evaluation = row.evaluation
        expected = [
            evaluation.cross_node_copies,
            evaluation.load_max_over_mean,
            1000 * modelled_layer_time(evaluation, comparison.topology).total,
            evaluation.slots_total_over_experts,
        ]
        assert [getattr(number, side) for number in key_numbers(content)] == pytest.approx(expected)


def test_every_method_has_a_name():
    assert set(LABELS) == set(METHODS)


def test_who_is_ahead_is_told_either_way(content):
    assert frontier_title(scaled(content, copies=0.1, busiest=1.0, slots=1)) == "GRACE is ahead of all 2 others in both traffic and balance"
    assert frontier_title(scaled(content, copies=2, busiest=3, slots=1)).endswith(
        "do at least as well as GRACE in both traffic and balance"
    )
