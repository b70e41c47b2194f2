"""One module a chapter: its plan (specs), its analysis (records to numbers) and its claims (a TOML file beside it)."""
