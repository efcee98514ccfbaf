"""Training sets from folders of photographs: `fd-data prepare PHOTOS OUT`."""
