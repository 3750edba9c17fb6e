"""Records and verdicts in; terminal text, HTML and JSON out."""
