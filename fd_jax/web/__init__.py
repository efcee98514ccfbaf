"""The browser demo: a page and an HTTP API in front of `FaceDiffuser`."""
