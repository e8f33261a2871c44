"""Feature representation. Functions named like their module are imported from it: `from cehrxgpt.features.embed import embed`."""
