"""Pictures of what jobs did: `timeline` gathers it, `figures` draws it with matplotlib, `text` in a terminal."""
