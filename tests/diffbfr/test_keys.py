"""Noise keys: plain for the first restoration, another for every other."""

from itertools import product

from diffbfr.keys import draw_keys, noise_key


def test_the_first_restoration_of_a_photo_has_the_plain_key() -> None:
    assert noise_key("ab") == "ab/0/0"


def test_content_face_draw_and_seed_each_make_another_key() -> None:
    keys = {
        noise_key(content, face, draw, seed)
        for content, face, draw, seed in product(("a", "b"), range(3), range(3), range(3))
    }
    assert len(keys) == 2 * 27


def test_draws_of_a_face_have_keys_of_their_own_and_the_first_is_the_plain_one() -> None:
    assert draw_keys("ab", 3) == [noise_key("ab"), noise_key("ab", draw=1), noise_key("ab", draw=2)]
    assert draw_keys("ab", 2, face=1, seed=5)[1] == noise_key("ab", 1, 1, 5)
