"""A web page for a trained model, built on gradio. Only `magnet-train demo` imports it."""
