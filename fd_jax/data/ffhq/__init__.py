"""Photographs of people in the layout of FFHQ-FastComposer, as folders or TFDS datasets."""
