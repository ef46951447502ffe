"""Applications built on the package: the web page and the quickstart."""
