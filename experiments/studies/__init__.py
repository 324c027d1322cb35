"""Studies as YAML files, each a question with arms, seeds and claims (docs/studies.md); and what Adam does to replaced units."""
