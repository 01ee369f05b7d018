"""Where it is drawn: boxes do not touch, phases go from left to right, steps pass beside the boxes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.draw.layout import GAP, LANE_HEIGHT, Item, lay_out, spread


def test_boxes_do_not_touch_and_phases_go_from_left_to_right(drawing):
    layout = lay_out(drawing)
    boxes = {box.node.id: box for box in layout.boxes}
    assert set(boxes) == {n.id for n in drawing.nodes}
    for one in boxes.values():
        assert 0 <= one.x <= one.x + one.width <= layout.width
        assert 0 <= one.y - one.height / 2 <= one.y + one.height / 2 <= layout.height
        for other in boxes.values():
            if one.node.phase < other.node.phase:
                assert one.x + one.width < other.x
            elif one is not other and one.node.phase == other.node.phase:
                assert abs(one.y - other.y) >= (one.height + other.height) / 2 + GAP - 1e-6


def test_steps_of_ranked_chains_pass_beside_the_boxes(drawing):
    layout = lay_out(drawing)
    phases = {n.id: n.phase for n in drawing.nodes}
    for line in layout.lines:
        if not line.edge.ranks:
            continue
        start, end = phases[line.edge.first], phases[line.edge.then]
        assert len(line.points) == 2 + 2 * len({p for p in phases.values() if start < p < end})
        for (left, y), (right, same) in zip(line.points[1:-1:2], line.points[2:-1:2], strict=True):
            assert y == same
            for box in layout.boxes:
                if box.x < right and left < box.x + box.width:
                    assert abs(box.y - y) >= (box.height + LANE_HEIGHT) / 2 + GAP - 1e-6


@given(st.lists(st.tuples(st.floats(-500, 500), st.floats(5, 40)), min_size=1, max_size=12))
def test_spreading_keeps_the_order_the_gaps_and_what_is_far_enough_apart(wanted):
    column = [Item(0, height) for _, height in wanted]
    spread(column, [want for want, _ in wanted])
    for one, other in pairwise(column):
        assert other.y - one.y >= (one.height + other.height) / 2 + GAP - 1e-6
    assert sum(i.y for i in column) == pytest.approx(sum(want for want, _ in wanted), abs=1e-3)
    again = [item.y for item in column]
    spread(column, again)
    assert [item.y for item in column] == pytest.approx(again)
