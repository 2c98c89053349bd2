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
    table = Table("name", "state", "network", "scale", "params", "size", "Set5", box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[3:]:
        column.justify = "right"
    for card in cards:
        table.add_row(
            _plain(card.name),
            card.state,
            card.architecture or "?",
            f"x{card.scale}" if card.scale else "?",
            f"{card.parameters / 1e6:.1f} M" if card.parameters else "?",
            f"{card.size / 1e6:.0f} MB" if card.size else "?",
            f"{card.scores['Set5']:.2f}" if "Set5" in card.scores else "",
        )
    console.print(table)
    console.print("\nSet5: PSNR in dB on the Y channel. 'downloadable' ones are fetched when first used.\n")
    for card in cards:
        facts = [fact for fact in (card.training, card.licence, card.source) if fact]
        if facts:
            console.print(_plain(f"{card.name}: {'; '.join(facts)}"), soft_wrap=True)
    console.print(f"\nmodels folder: {models_folder()} (set DRCT_MODELS to change it)", soft_wrap=True)


def _plain(text: str) -> str:
    """Names and notes are the words of whoever made a file: leave out what could steer the terminal."""
    return "".join(c for c in text if c.isprintable())
