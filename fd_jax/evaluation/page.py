"""The report as one HTML page."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from fd_jax.evaluation.report import Evaluation, Table, tables

_STYLE = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { border: 1px solid #ccc; padding: 0.2em 0.6em; text-align: left; vertical-align: top }
img { max-width: 100% }
figure { display: inline-block; margin: 0.3em; width: 10em; vertical-align: top }
figcaption { font-size: 0.8em }
"""


def page(
    evaluation: Evaluation, images: Sequence[str], examples: Mapping[str, Sequence[str]]
) -> str:
    """Returns the page.

    Args:
        evaluation: The scores.
        images: Addresses of plots and sheets, relative to the page.
        examples: Addresses of some pictures of each run, named as their cases.
    """
    count = len(evaluation.cases)
    parts = [
        "<h1>Evaluation</h1>",
        f"<p>{count} pictures of each run, of the same prompts, people and noise. In brackets are "
        "95 % intervals, by resampling people (or groups of them) 1,000 times; std is over "
        "pictures.</p>",
        *(f'<p><img src="{html.escape(image)}" alt=""></p>' for image in images),
        *map(_table, tables(evaluation)),
        *(_examples(evaluation, run, names) for run, names in examples.items()),
        "<h2>Measures</h2>",
        "<ul>",
        *(
            f"<li><b>{html.escape(m.title)}</b>: {html.escape(m.explanation)}.</li>"
            for m in evaluation.measures.values()
        ),
        "</ul>",
        "<h2>Judges</h2>",
        _list(evaluation.judges),
        "<h2>Judges that are missing</h2>",
        _list(evaluation.missing or {"none": "all of them are there"}),
        "<h2>Settings</h2>",
        _list({key: str(value) for key, value in evaluation.settings.items()}),
    ]
    head = f'<meta charset="utf-8"><title>Evaluation</title><style>{_STYLE}</style>'
    return f"<!DOCTYPE html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    title, text = html.escape(table.title), html.escape(table.text)
    return f"<h2>{title}</h2><p>{text}</p><table><tr>{head}</tr>{rows}</table>"


def _examples(evaluation: Evaluation, run: str, addresses: Sequence[str]) -> str:
    prompts = {case.name: case.prompt.replace(" <|image|>", "") for case in evaluation.cases}
    figures = "".join(
        f'<figure><img src="{html.escape(address)}" alt=""><figcaption>'
        f"{html.escape(prompts.get(Path(address).stem, ''))}</figcaption></figure>"
        for address in addresses
    )
    return f"<h2>Some pictures of {html.escape(run)}</h2>{figures}"


def _list(content: Mapping[str, str]) -> str:
    rows = "".join(
        f"<li>{html.escape(key)}: {html.escape(value)}</li>" for key, value in content.items()
    )
    return f"<ul>{rows}</ul>"
