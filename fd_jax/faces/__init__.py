"""Faces in images: recognizers, and the matching of faces with people."""
