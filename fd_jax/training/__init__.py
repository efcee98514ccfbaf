"""Training of the TDM and the SDM."""
