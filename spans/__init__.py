"""Words of a text, tags of words, spans of tags: what training and serving must see alike. NumPy only."""
