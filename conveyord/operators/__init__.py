"""One file per connector, named kind first. Found through entry points, never imported for effect."""
