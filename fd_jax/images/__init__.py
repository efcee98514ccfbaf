"""Pictures as files and drawings: PNG with settings, contact sheets, traces."""
