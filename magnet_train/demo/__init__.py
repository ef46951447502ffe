"""A page in the browser for one model: the parts of `magnet-train demo`."""
