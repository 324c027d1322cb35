"""Studies as YAML files (docs/studies.md), and overshoot: what Adam does to replaced units."""
