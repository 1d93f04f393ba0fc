"""Titles and genres for made-up items: a word that goes with the genre, a word that does not, and a year."""

from __future__ import annotations

import numpy as np

__all__ = ["GENRES", "make_title"]

_WORDS = {
    "Action": ("Strike", "Pursuit", "Bullet", "Outlaw"),
    "Adventure": ("Voyage", "Treasure", "Island", "Expedition"),
    "Animation": ("Toybox", "Rabbit", "Crayon", "Balloon"),
    "Children": ("Puppy", "Holiday", "Playground", "Teddy"),
    "Comedy": ("Wedding", "Roommates", "Mistake", "Neighbours"),
    "Crime": ("Heist", "Witness", "Alibi", "Syndicate"),
    "Documentary": ("Archive", "Portrait", "Glacier", "Testimony"),
    "Drama": ("Letters", "Daughter", "Inheritance", "Silence"),
    "Fantasy": ("Dragon", "Sorcerer", "Crown", "Enchantment"),
    "Film-Noir": ("Shadow", "Alley", "Cigarette", "Stranger"),
    "Horror": ("Cellar", "Scream", "Haunting", "Crypt"),
    "Musical": ("Chorus", "Melody", "Cabaret", "Encore"),
    "Mystery": ("Riddle", "Vanishing", "Key", "Manor"),
    "Romance": ("Kiss", "Promise", "Paris", "Valentine"),
    "Sci-Fi": ("Orbit", "Android", "Nebula", "Colony"),
    "Thriller": ("Hostage", "Conspiracy", "Deadline", "Paranoia"),
    "War": ("Regiment", "Trench", "Armistice", "Bunker"),
    "Western": ("Saddle", "Sheriff", "Canyon", "Frontier"),
}
_ANY_WORDS = tuple(
    f"{word}"
    for word in (
        *("Silent", "Last", "Golden", "Broken", "Hidden", "Second", "Midnight", "Distant", "Northern", "Burning"),
        *("Paper", "Glass", "Winter", "Crimson", "Hollow", "Electric", "Lonely", "Perfect", "Forgotten", "Wild"),
    )
)

GENRES = tuple(_WORDS)


def make_title(genre: str, rng: np.random.Generator) -> str:
    """Make a title such as ``The Hidden Orbit (1987)``.

    Args:
        genre: one of ``GENRES``.
        rng: source of chance.

    Returns:
        The title with its year.
    """
    any_word = _ANY_WORDS[rng.integers(len(_ANY_WORDS))]
    genre_word = _WORDS[genre][rng.integers(len(_WORDS[genre]))]
    return f"The {any_word} {genre_word} ({rng.integers(1950, 2024)})"
