"""SGLang: its recordings and start locations, and the plug-in that serves our plans in it."""
