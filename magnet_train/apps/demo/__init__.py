"""A page in the browser for a trained model, on gradio. Only `magnet-train demo` imports it."""
