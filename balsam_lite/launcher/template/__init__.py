"""Command templates of applications, and how bash reads them."""
