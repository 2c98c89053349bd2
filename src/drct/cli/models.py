"""``drct models``: list the models that are bundled, downloadable or local."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the model cards as JSON.")
def command(as_json: bool) -> None:
    """List the models that can be used by name.

    Downloadable models are fetched when they are first used. Weight files of your own, put into the models folder, can be used by
    name as well.
    """
    from drct.weights import list_models, models_folder

    cards = list_models()
    if as_json:
        click.echo(json.dumps([card.model_dump(mode="json") | {"state": card.state} for card in cards], indent=2))
        return

    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 250  # a pipe has no width: do not fold lines for it
    table = Table("name", "state", "network", "scale", "parameters", "size", "Set5 dB", "training", box=None, pad_edge=False)
    for column in table.columns[3:7]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    for card in cards:
        table.add_row(
            card.name,
            card.state,
            card.architecture or "?",
            f"x{card.scale}" if card.scale else "?",
            f"{card.parameters / 1e6:.2f} M" if card.parameters else "?",
            f"{card.size / 1e6:.1f} MB" if card.size else "?",
            f"{card.scores['Set5']:.2f}" if "Set5" in card.scores else "",
            "".join(c for c in card.training if c.isprintable()),  # the words of whoever made the file
        )
    console.print(table)
    console.print()
    for card in cards:
        if card.source:
            licence = f"  [{card.licence}]" if card.licence else ""
            console.print(f"{card.name}: {card.source}{licence}", soft_wrap=True)
    console.print(f"models folder: {models_folder()} (set DRCT_MODELS to change it)", soft_wrap=True)
