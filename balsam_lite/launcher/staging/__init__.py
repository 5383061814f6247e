"""Stage files: from parents by links (`links`), from and to other places by copies (`transfers`)."""
