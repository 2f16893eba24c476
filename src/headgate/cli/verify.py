"""``headgate verify``: every byte of a store against its checksums."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from headgate.cli.progress import ProgressBar
from headgate.engine.budget import format_size
from headgate.errors import DamagedStore
from headgate.store import Store
from headgate.store import verify as verify_store
from headgate.store.verify import total_bytes


def verify(
    store: Annotated[Path, typer.Argument(help="A store made by `headgate convert`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Read all of STORE and compare it with its checksums.

    Prints each damaged place with its layer and expert; the exit status is 2 if
    there is any. Replace the files named by good copies, or convert again.
    """
    opened = Store.open(store)
    total = total_bytes(opened)
    damages = []
    with ProgressBar(f"verifying {store}", total) as bar:
        for damage in verify_store(opened, bar.advance):
            damages.append(damage)
            if not as_json:
                print(f"{damage.file}: {damage.what}", flush=True)
    if as_json:
        document = {"bytes": total, "damages": [dataclasses.asdict(d) for d in damages]}
        print(json.dumps(document))
    if damages:
        places = "1 damaged place" if len(damages) == 1 else f"{len(damages)} damaged places"
        raise DamagedStore(f"{store} has {places}")
    if not as_json:
        print(f"{store}: all {format_size(total)} are intact")
