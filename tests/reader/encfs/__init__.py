"""The formats of an encrypted volume, after docs/format.md and docs/format-map.md."""
