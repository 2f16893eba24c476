"""Options of the knobs that change what the model computes."""

from __future__ import annotations

from typing import Annotated

import typer

ExpertBits = Annotated[
    str | None,
    typer.Option(
        help="Lossy: read experts at fewer bits than the store has; as 2:4 at 2 and, where "
        "the router's weight is, at 4; as 2:4@-1 or 2:4@0+7 at 4 in these layers."
    ),
]
TopShare = Annotated[
    float | None,
    typer.Option(
        help="With 2:4: share of a token's router weight from which on an expert is read at 4 "
        "bits; the mean share if not given."
    ),
]
Refine = Annotated[
    bool,
    typer.Option(
        "--refine", help="Lossy: read at the fewest bits, and what is used again in full later."
    ),
]
RouterMass = Annotated[
    float | None,
    typer.Option(help="Lossy: only as many experts as have this share of the router's weight."),
]
RouterFloor = Annotated[int | None, typer.Option(help="But at least this many; 1 if not given.")]
PreferCached = Annotated[
    float | None,
    typer.Option(
        metavar="TOL",
        help="Lossy: in answers, take near-tied experts that are in memory, losing at most "
        "this share of the router's weight.",
    ),
]
