"""Mixup and CutMix: partners, shares, and that masked rows are mixed into no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.pixels import assert_same_pixels, jit_quickly

from vggjax.data.augment.augment import find_partners, mix
from vggjax.data.augment.rng import beta
from vggjax.training.parallel import Placement

ROWS = 64
mixed = jit_quickly(mix, static_argnames=("mixup", "cutmix"))


def batch(masked=()):
    """Return 64 images, row i of level 3 * i and label i, masked rows of level 255."""
    levels = 3 * np.arange(ROWS, dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (ROWS, 20, 20, 3)).copy()
    mask = np.ones(ROWS, np.float32)
    mask[list(masked)] = 0
    images[list(masked)] = 255
    return images, np.arange(ROWS, dtype=np.int32), mask


@pytest.fixture
def key():
    return jax.random.key(1)


def test_mixup_blends_an_image_with_the_next_by_the_share_of_its_label(key):
    images, label, mask = batch()
    out = mixed(key, images, label, mask, mixup=1.0)
    np.testing.assert_array_equal(out.other, np.roll(label, -1))
    share = np.asarray(out.share)[:, None, None, None]
    expected = images * share + np.roll(images, -1, axis=0) * (1 - share)
    assert out.images.dtype == np.uint8
    np.testing.assert_allclose(out.images, expected, atol=0.51)
    assert 0.3 < share.mean() < 0.7 and share.min() < 0.1 and share.max() > 0.9


def test_shares_have_the_variance_of_the_beta_distribution(key):
    keys = jax.random.split(key, 2000)
    draw = jit_quickly(beta)
    for alpha in (0.2, 2.0):
        share = np.asarray(draw(keys, alpha))
        assert abs(share.mean() - 0.5) < 0.05
        assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_cutmix_pastes_one_box_and_its_area_is_the_share_of_the_label(key):
    images, label, mask = batch()
    out = mixed(key, images, label, mask, cutmix=1.0)
    pasted = np.asarray(out.images) != images
    np.testing.assert_allclose(out.share, 1 - pasted[..., 0].mean((1, 2)), atol=1e-6)
    assert 0.3 < np.mean(out.share) < 0.85
    for i in range(ROWS):
        rows, columns = pasted[i, ..., 0].any(1), pasted[i, ..., 0].any(0)
        assert pasted[i][np.ix_(rows, columns)].all()  # the whole box
        assert set(np.asarray(out.images[i])[pasted[i]]) <= {3 * ((i + 1) % ROWS)}


@pytest.mark.slow
def test_with_both_each_row_draws_one_of_them(key):
    images, label, mask = batch()
    out = mixed(key, images, label, mask, mixup=1.0, cutmix=1.0)
    blends, pastes = (
        mixed(key, images, label, mask, **{name: 1.0}) for name in ("mixup", "cutmix")
    )
    levels = [np.asarray(mixed.images).astype(int) for mixed in (out, pastes, blends)]
    # Two programs may round a blend to either side; pastes differ from blends by much more.
    is_paste = (np.abs(levels[0] - levels[1]) <= 1).all((1, 2, 3))
    is_blend = (np.abs(levels[0] - levels[2]) <= 1).all((1, 2, 3))
    assert (is_paste | is_blend).all()
    assert 16 < is_paste.sum() < 48
    expected = np.where(is_paste, pastes.share, blends.share)
    np.testing.assert_allclose(out.share, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_masked_row_is_mixed_with_no_other(key, kind):
    masked = (0, 5, 6, 63)  # both ends, and two neighbors
    images, label, mask = batch(masked)
    out = mixed(key, images, label, mask, **{kind: 1.0})
    valid = np.flatnonzero(mask)
    assert np.asarray(out.images)[valid].max() <= 3 * 62  # nothing of a masked row's 255
    np.testing.assert_array_equal(np.asarray(out.other)[valid], np.roll(valid, -1))
    np.testing.assert_array_equal(np.asarray(out.images)[list(masked)], 255)
    for noise in (0, 17):  # whatever they hold, the others are the same
        images[list(masked)] = noise
        again = mixed(key, images, label, mask, **{kind: 1.0})
        np.testing.assert_array_equal(
            np.asarray(again.images)[valid], np.asarray(out.images)[valid]
        )


def test_a_row_without_partner_is_mixed_with_itself(key):
    images, label, mask = batch(range(1, ROWS))
    out = mixed(key, images, label, mask, mixup=1.0)
    np.testing.assert_array_equal(out.images, images)
    assert out.other[0] == 0


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_rows_on_four_devices_have_the_partners_that_they_have_on_one(kind):
    placement = Placement(kind, num_devices=4)
    names = ("images", "label", "mask")
    rows = dict(zip(names, batch((3, 16, 40)), strict=True))

    def partners(state, rows):
        return find_partners(*(rows[name] for name in names), placement.axis_name)

    out = placement.compile(partners)(placement.put_state(0), placement.put_batch(rows))
    expected = find_partners(*map(jnp.asarray, rows.values()), None)
    for a, b in zip(out, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a).reshape(b.shape), b)


@pytest.mark.slow
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
    out = placement.compile(mix_rows)(placement.put_state(0), given)
    expected = mixed(keys, *batch((3, 16, 40)), mixup=1.0)
    images, other, share = (
        np.asarray(a).reshape(b.shape) for a, b in zip(out, expected, strict=True)
    )
    assert_same_pixels(images, expected.images, share=1)
    np.testing.assert_array_equal(other, expected.other)
    np.testing.assert_allclose(share, expected.share, rtol=1e-5)
