"""FaceDiffuser: from prompts and photographs to pictures, in memory or in files."""
