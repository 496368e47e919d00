"""Mixup and CutMix: who is mixed with whom, how much, and that padding is mixed into nobody."""

import jax
import numpy as np
import pytest

from vggjax.data.augment.mix import mix
from vggjax.training.parallel import Placement

ROWS = 64
mixed = jax.jit(mix, static_argnames=("mixup", "cutmix"))


def batch(masked=()):
    """Row i is all of level 3 * i, its label i."""
    levels = 3 * np.arange(ROWS, dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (ROWS, 20, 20, 3)).copy()
    mask = np.ones(ROWS, np.float32)
    mask[list(masked)] = 0
    images[list(masked)] = 255
    return images, np.arange(ROWS, dtype=np.int32), mask


@pytest.fixture
def key():
    return jax.random.key(1)


def test_mixup_blends_a_image_with_the_next_by_the_share_of_its_label(key):
    images, label, mask = batch()
    out = mixed(key, images, label, mask, mixup=1.0)
    np.testing.assert_array_equal(out.other, np.roll(label, -1))
    share = np.asarray(out.share)[:, None, None, None]
    expected = images * share + np.roll(images, -1, axis=0) * (1 - share)
    assert out.images.dtype == np.uint8
    np.testing.assert_allclose(out.images, expected, atol=0.51)
    assert 0.3 < share.mean() < 0.7 and share.min() < 0.1 and share.max() > 0.9


def test_a_small_alpha_leaves_most_images_nearly_alone(key):
    out = mixed(key, *batch(), mixup=0.1)
    assert np.mean(np.abs(np.asarray(out.share) - 0.5) > 0.4) > 0.6


def test_cutmix_pastes_one_box_and_shares_the_label_by_its_area(key):
    images, label, mask = batch()
    out = mixed(key, images, label, mask, cutmix=1.0)
    pasted = np.asarray(out.images) != images
    np.testing.assert_allclose(out.share, 1 - pasted[..., 0].mean((1, 2)), atol=1e-6)
    assert 0.3 < np.mean(out.share) < 0.85
    for i in range(ROWS):
        rows, columns = pasted[i, ..., 0].any(1), pasted[i, ..., 0].any(0)
        assert pasted[i][np.ix_(rows, columns)].all()  # a box, whole
        assert set(np.asarray(out.images[i])[pasted[i]]) <= {3 * ((i + 1) % ROWS)}


def test_with_both_each_row_draws_one_of_them(key):
    images, label, mask = batch()
    out = mixed(key, images, label, mask, mixup=1.0, cutmix=1.0)
    blends, pastes = (
        mixed(key, images, label, mask, **{name: 1.0}) for name in ("mixup", "cutmix")
    )
    is_paste = (np.asarray(out.images) == pastes.images).all((1, 2, 3))
    is_blend = (np.asarray(out.images) == blends.images).all((1, 2, 3))
    assert (is_paste | is_blend).all()
    assert 16 < is_paste.sum() < 48
    np.testing.assert_array_equal(out.share, np.where(is_paste, pastes.share, blends.share))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_row_of_mask_0_is_mixed_into_nobody_and_with_nobody(key, kind):
    masked = (0, 5, 6, 63)  # at both ends, and two together
    images, label, mask = batch(masked)
    out = mixed(key, images, label, mask, **{kind: 1.0})
    valid = np.flatnonzero(mask)
    assert np.asarray(out.images)[valid].max() <= 3 * 62  # nothing of the 255 of a masked row
    np.testing.assert_array_equal(np.asarray(out.other)[valid], np.roll(valid, -1))
    np.testing.assert_array_equal(np.asarray(out.images)[list(masked)], 255)
    for noise in (0, 17):  # whatever they hold, the others come out the same
        images[list(masked)] = noise
        again = mixed(key, images, label, mask, **{kind: 1.0})
        np.testing.assert_array_equal(
            np.asarray(again.images)[valid], np.asarray(out.images)[valid]
        )


def test_a_row_without_another_is_mixed_with_itself(key):
    images, label, mask = batch(range(1, ROWS))
    out = mixed(key, images, label, mask, mixup=1.0)
    np.testing.assert_array_equal(out.images, images)
    assert out.other[0] == 0


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_four_devices_mix_what_one_mixes(key, kind):
    placement = Placement(kind, num_devices=4)
    keys = jax.random.split(key, ROWS)
    names = ("keys", "images", "label", "mask")
    rows = dict(zip(names, (jax.random.key_data(keys), *batch((3, 16, 40))), strict=True))

    def mix_rows(state, rows):
        keys = jax.random.wrap_key_data(rows["keys"])
        own = (rows["images"], rows["label"], rows["mask"])
        return mix(keys, *own, mixup=1.0, axis_name=placement.axis_name)

    given = placement.put_batch(jax.tree.map(np.asarray, rows))
    found = placement.compile(mix_rows)(placement.put_state(0), given)
    expected = mixed(keys, *batch((3, 16, 40)), mixup=1.0)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a).reshape(b.shape), b)
