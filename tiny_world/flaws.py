"""Pictures somebody would like less than a clean one that shows its prompt: what a preference model learns from."""

import math
import random
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiny_world.prompts import NEVER_MISREAD, World, is_sign
from tiny_world.scenes import Scene, misread, render, sample_scene

Picture = NDArray[np.uint8]

FLAWS = ("mismatched", "misread", "smeared", "broken", "doubled")


def clean(metadata: dict[str, Any], world: World, rng: random.Random) -> Picture:
    """A picture of the prompt."""
    return photographed(render(sample_scene(metadata, world, rng)), rng)


def flawed(
    metadata: dict[str, Any], flaw: str, others: list[dict[str, Any]], world: World, rng: random.Random
) -> Picture:
    """The same with a flaw. ``others`` are prompts a mismatched picture may show instead.

    Single objects and letters cannot be misread; they are mismatched then.
    """
    if flaw == "mismatched" or (flaw == "misread" and metadata["tag"] in NEVER_MISREAD):
        wanted = _subject(metadata)
        other = next(other for other in iter(lambda: rng.choice(others), None) if _subject(other) != wanted)
        return clean(other, world, rng)
    if flaw == "misread":
        return clean(misread(metadata, world, rng), world, rng)
    scene = sample_scene(metadata, world, rng)
    picture = {"smeared": _smeared, "broken": _broken, "doubled": _doubled}[flaw](scene, rng)
    return photographed(picture, rng)


def _subject(metadata: dict[str, Any]) -> list[str]:
    """What is seen, without colors and places."""
    if is_sign(metadata):
        return [metadata["text"]]
    return sorted(clause["class"] for clause in metadata["include"] for _ in range(clause["count"]))


def photographed(picture: Picture, rng: random.Random) -> Picture:
    """Slightly soft and noisy, as pictures from a model are; good and bad ones alike, so that it tells nothing."""
    soft = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.2, 0.7)).astype(np.float32)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0.0, rng.uniform(0.0, 3.0), picture.shape)
    picture = np.clip(np.round(soft + noise), 0, 255)
    return np.asarray(picture, np.uint8)


def _smeared(scene: Scene, rng: random.Random) -> Picture:
    """Out of focus, or moved while the shutter was open."""
    picture = render(scene)
    if rng.random() < 0.5:
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(1.6, 3.0)), np.uint8)
    length, angle = rng.uniform(7, 13), rng.uniform(0, math.pi)
    side = 2 * math.ceil(length / 2) + 1
    kernel = np.zeros((side, side), np.float32)
    centre = side // 2
    ends = [
        (round(centre + sign * math.cos(angle) * length / 2), round(centre + sign * math.sin(angle) * length / 2))
        for sign in (-1, 1)
    ]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    return np.asarray(cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE), np.uint8)


def _broken(scene: Scene, rng: random.Random) -> Picture:
    """One object lacks what lies beyond a line near its centre, or has a gap through it."""
    picture = render(scene)
    thing = rng.choice(scene.objects)
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[: scene.size, : scene.size] + 0.5
    along = (x - thing.cx) * math.cos(angle) + (y - thing.cy) * math.sin(angle)
    near = np.hypot(x - thing.cx, y - thing.cy) < 1.5 * thing.radius
    if rng.random() < 0.5:
        lost = near & (along > rng.uniform(-0.2, 0.25) * thing.radius)
    else:
        lost = near & (np.abs(along) < rng.uniform(0.15, 0.3) * thing.radius)
    picture[lost] = scene.ground
    return picture


def _doubled(scene: Scene, rng: random.Random) -> Picture:
    """Everything twice, half transparent and a few pixels apart."""
    angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(4, 8)
    shift = np.array([[1, 0, distance * math.cos(angle)], [0, 1, distance * math.sin(angle)]], np.float32)
    picture = render(scene)
    moved = cv2.warpAffine(picture, shift, (scene.size, scene.size), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.addWeighted(picture, 0.5, moved, 0.5, 0), np.uint8)
