"""Small studies that answer one question each: `python -m experiments.studies.NAME --help`."""
