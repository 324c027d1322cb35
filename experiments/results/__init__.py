"""From runs on disk to statements: reading, grouping, statistics, tables, figures, a report. Imports no torch."""
