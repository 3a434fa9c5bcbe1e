from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.content import content_key, fingerprint
from gateway.sharing import ResultCache, UnderWay, mark_of
from reward_api import Item, Score

pytestmark = pytest.mark.unit


def item(value: int = 0, prompt: str = "a cat", metadata: object = None, shape: tuple[int, int] = (4, 4)) -> Item:
    return Item(np.full((*shape, 3), value, np.uint8), prompt, metadata)


def key(one: Item, reward: str = "ocr", version: str = "1") -> bytes:
    return content_key(one, reward, version)


def test_equal_content_has_one_key_and_any_difference_another():
    same = item(metadata={"a": 1, "b": 2})
    others = [
        item(1, metadata={"a": 1, "b": 2}),
        item(prompt="a dog", metadata={"a": 1, "b": 2}),
        item(metadata={"a": 1, "b": 3}),
        item(metadata={"a": 1.0, "b": 2}),
        item(),
        item(shape=(2, 8), metadata={"a": 1, "b": 2}),
    ]
    assert key(same) == key(item(metadata={"b": 2, "a": 1}))
    keys = {key(same), key(same, "style"), key(same, version="2"), *map(key, others)}
    assert len(keys) == 3 + len(others)
    assert key(same, "oc", "r1") != key(same, "ocr", "1")


def test_rows_of_a_larger_picture_count_as_what_they_show():
    large = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    view, copy = Item(large[:, ::2], "a cat"), Item(large[:, ::2].copy(), "a cat")
    assert key(view) == key(copy)
    assert fingerprint(view) == fingerprint(copy)


def test_one_pixel_the_fingerprint_does_not_look_at_is_enough_to_differ():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[0, 0, 1] = 1
    first, second = Item(np.zeros((64, 64, 3), np.uint8), "a cat"), Item(pixels, "a cat")
    assert fingerprint(first) == fingerprint(second)
    under_way: UnderWay[str] = UnderWay(key)
    under_way.add(first, mark_of(first, False), "first")
    assert under_way.find(second, mark_of(second, False)) is None
    under_way.add(second, mark_of(second, False), "second")
    assert under_way.find(second, mark_of(second, False)) == "second"
    assert under_way.find(second, mark_of(second, True)) is None
    under_way.remove(mark_of(first, False), "first")
    under_way.remove(mark_of(first, False), "first")
    assert under_way.find(first, mark_of(first, False)) is None
    assert under_way.find(second, mark_of(second, False)) == "second"
    under_way.remove(mark_of(second, False), "second")
    assert len(under_way) == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), max_size=60))
def test_the_cache_forgets_what_was_not_used_for_longest(events):
    cache = ResultCache(max_entries=3, max_bytes=10**6)
    model: OrderedDict[bytes, Score] = OrderedDict()
    for is_put, number, value in events:
        name = b"%d" % number
        if is_put:
            cache.put(name, Score(value))
            model.pop(name, None)
            model[name] = Score(value)
            if len(model) > 3:
                model.popitem(last=False)
        else:
            assert cache.get(name) == model.get(name)
            if name in model:
                model.move_to_end(name)
        assert len(cache) == len(model)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 900)), max_size=40))
def test_the_cache_is_bounded_in_bytes(events):
    cache = ResultCache(max_entries=10**6, max_bytes=2000)
    for number, size in events:
        cache.put(b"%d" % number, Score(1.0, {"text": "x" * size}))
        assert 0 <= cache.bytes <= 2000
    for number in range(10):
        if (score := cache.get(b"%d" % number)) is not None:
            assert score.score == 1.0
