"""The reference's formats: read, written, and the names in them."""
