"""Stored images, and what becomes of them and of jobs that have expired."""

import os

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from job_tables import Tables, stored
from sqlalchemy import func, select

from gateway.jobs.job import write_content
from gateway.jobs.retention import UPLOAD_S, Retention
from gateway.jobs.store import ImageStore, digest_of
from gateway.jobs.tables import chunks, entries, images, items, jobs, scores

pytestmark = pytest.mark.unit

PIXELS = hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(3)))


@given(first=PIXELS, second=PIXELS)
def test_a_digest_is_of_shape_and_pixels(first, second):
    same = first.shape == second.shape and bool((first == second).all())
    assert (digest_of(first) == digest_of(second)) == same
    assert digest_of(np.asfortranarray(first)) == digest_of(first)


@given(PIXELS)
def test_an_image_comes_back_as_it_was_and_is_one_file(tmp_path_factory, pixels):
    store = ImageStore(tmp_path_factory.mktemp("store"))
    digest = digest_of(pixels)
    store.put(digest, pixels)
    store.put(digest, pixels)
    assert (store.get(digest) == pixels).all()
    assert len([path for path in store.folder.rglob("*") if path.is_file()]) == 1
    store.remove(digest)
    store.remove(digest)
    with pytest.raises(ValueError, match=digest):
        store.get(digest)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"\xff", lambda data: b""])
def test_a_damaged_image_is_told_from_a_sound_one(tmp_path, damage):
    store = ImageStore(tmp_path)
    pixels = np.zeros((2, 3, 3), np.uint8)
    digest = digest_of(pixels)
    store.put(digest, pixels)
    (path,) = tmp_path.glob(f"*/{digest}")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=digest):
        store.get(digest)


def test_a_pickle_in_the_place_of_an_image_is_not_loaded(tmp_path):
    store = ImageStore(tmp_path)
    digest = "ab" * 32
    (tmp_path / "ab").mkdir()
    np.save(tmp_path / "ab" / "x.npy", np.array([print], dtype=object), allow_pickle=True)
    (tmp_path / "ab" / "x.npy").rename(tmp_path / "ab" / digest)
    with pytest.raises(ValueError, match="allow_pickle"):
        store.get(digest)


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    store = ImageStore(tmp_path)
    (tmp_path / "aside").mkdir()
    for name, age_s in (("old", 7200), ("new", 0)):
        path = tmp_path / "aside" / name
        path.write_bytes(b"half an image")
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age_s))
    store.clean(3600)
    assert [path.name for path in (tmp_path / "aside").iterdir()] == ["new"]


def test_the_order_of_metadata_does_not_matter_and_its_values_do():
    one = write_content("p", {"a": 1, "b": [1.5, None]})
    assert one == write_content("p", {"b": [1.5, None], "a": 1})
    assert len({one, write_content("p", {"a": 1}), write_content("q", {"a": 1}), write_content("p", None)}) == 4


@pytest.fixture
def kept(tmp_path):
    """Tables and a store in which the images of `stored` 0 to 2 lie, with retention after 1000 s."""
    tables = Tables(f"sqlite:///{tmp_path / 'jobs.sqlite'}", keep_s=1000)
    store = ImageStore(tmp_path / "images")
    for number in range(3):
        store.put(stored(number).image, np.full((1, 1, 3), number, np.uint8))
    yield tables, store, Retention(tables.engines[1], store, tables.config)
    tables.close()


def rows(tables: Tables) -> dict[str, int]:
    with tables.engines[0].begin() as connection:
        return {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0
            for table in (jobs, items, entries, chunks, scores, images)
        }


def has(store: ImageStore, number: int) -> bool:
    return (store.folder / stored(number).image[:2] / stored(number).image).exists()


def test_a_finished_job_expires_with_all_that_no_other_needs(kept):
    tables, store, retention = kept
    tables.add([stored(0), stored(1)], now=0)
    (claim,) = tables.claim_all(0)
    tables.score(claim, 100)
    live = tables.add([stored(1), stored(2)], now=200)
    assert retention.sweep(1099) == 0
    assert rows(tables)["jobs"] == 2
    while retention.sweep(1100 + UPLOAD_S):
        pass
    found = tables.ledger.progress(live)
    assert found is not None
    assert found.pending == 2
    assert rows(tables) == {"jobs": 1, "items": 2, "entries": 2, "chunks": 1, "scores": 0, "images": 2}
    assert [has(store, number) for number in range(3)] == [False, True, True]


def test_a_score_that_a_job_shows_outlives_the_job_that_paid_for_it(kept):
    tables, _, retention = kept
    tables.add([stored(0)], now=0)
    (claim,) = tables.claim_all(0)
    tables.score(claim, 0)
    later = tables.add([stored(0)], now=900)
    (claim,) = tables.claim_all(900)
    tables.score(claim, 900)
    retention.sweep(1001)
    assert rows(tables)["scores"] == 1
    assert len(tables.ledger.results(later, 0)[0]) == 1


def test_a_cancelled_job_expires_and_a_live_one_never(kept):
    tables, _, retention = kept
    live = tables.add([stored(0)], now=0)
    gone = tables.add([stored(1)], now=0)
    tables.ledger.cancel(gone, 10)
    retention.sweep(10**9)
    assert tables.ledger.progress(gone) is None
    assert tables.ledger.progress(live) is not None


def test_an_image_whose_request_came_to_nothing_is_removed_after_an_hour(kept):
    tables, store, retention = kept
    assert tables.ledger.expect(stored(0).image, 3, 0)
    retention.sweep(UPLOAD_S - 1)
    assert has(store, 0)
    assert not tables.ledger.expect(stored(0).image, 3, UPLOAD_S - 1)  # another request with the same image
    retention.sweep(UPLOAD_S)
    assert has(store, 0)
    retention.sweep(2 * UPLOAD_S - 1)
    assert not has(store, 0)
    assert tables.ledger.stored_bytes() == 0


def test_an_expired_key_makes_a_new_job(kept):
    tables, _, retention = kept
    old = tables.add([stored(0)], now=0, idempotency_key="k")
    tables.ledger.cancel(old, 0)
    retention.sweep(1000)
    assert tables.add([stored(0)], now=1000, idempotency_key="k") != old
