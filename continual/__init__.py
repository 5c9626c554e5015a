"""DyTox: Transformers for Continual Learning with DYnamic TOken eXpansion (arXiv 2111.11326)."""
