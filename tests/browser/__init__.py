"""The views in a real browser; a package, so that its files may be called as those of `tests`."""
