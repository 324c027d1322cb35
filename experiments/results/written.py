"""A whole comparison: what compare.py does between its command line and its exit. Imports no torch."""

from experiments.places import quoted
from experiments.results.comparison import compare, enough
from experiments.results.pictures import draw_comparison
from experiments.results.report import plotly_script, write_report
from experiments.results.settings import CompareConfig
from experiments.results.tables import legend, on_screen, write_tables


def compared(settings: CompareConfig, command: str) -> list[str]:
    """Compare, write tables, pictures and the report into `settings.out`; the lines for the screen.

    ValueError: nothing can be compared, or nothing be written.
    """
    plotly_script()  # first: whoever lacks it should not wait for the rest
    told = compare(settings)
    closing = enough(told)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        tables = write_tables(told, settings.out, closing)
        pictures = draw_comparison(told, settings.out)
        report = write_report(told, settings.out, command, closing)
    except OSError as error:
        place = error.filename or settings.out
        raise ValueError(f"out = {str(settings.out)!r}: {place}: {error.strerror or error}") from None
    return [
        *on_screen(told),
        *legend(told),
        "",
        closing,
        f"numbers:   {' '.join(map(quoted, tables))}",
        f"pictures:  {' '.join(map(quoted, pictures))}",
        f"report:    {quoted(report)} (open it in a browser; it needs no network)",
    ]
