"""Programs built on the package: the page in the browser and the quickstart."""
