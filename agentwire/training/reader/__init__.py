"""The training of reader bridges: docs/reader.md describes it."""
