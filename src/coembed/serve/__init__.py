"""Pages for people: the only room that imports fastapi."""
